import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.cli.main import main
from kfrl.nets.images.registry import make_net
from kfrl.supervised.classifiers import Card, save_classifier
from kfrl.supervised.data.sets import load_data


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    """A classifier of digits that nobody trained: each logit is the likeness to a digit's mean image."""
    data = load_data("digits")
    images = data.train.pixels.flatten(1) / 255
    means = torch.stack([images[data.train.labels == digit].mean(0) for digit in range(10)])
    net = make_net("mlp-64", (1, 8, 8), 10)
    net.fc1.weight.data, net.fc1.bias.data = torch.eye(64), torch.zeros(64)
    net.head.weight.data, net.head.bias.data = means, -0.5 * means.square().sum(1)
    path = tmp_path / "templates.safetensors"
    save_classifier(path, net, Card("digits", data.classes, net.arch, (1, 8, 8), (0.0,), (1.0,)))
    return path


def test_eval_counts_errors_under_corruption(
    templates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "result.json"
    assert main(["supervised", "eval", str(templates), "--corrupt", "0", "30", "100", "--json", str(result)]) == 0
    found = json.loads(result.read_text())
    clean, some, all_noise = (found["corrupted"][percent]["error_percent"] for percent in ("0", "30", "100"))
    assert clean == found["error_percent"] < 15
    assert clean + 5 < some < 80 < all_noise
    assert f"30 % of the pixels noise: {some:.2f} % error" in capsys.readouterr().out


def test_eval_takes_as_many_images_at_once_as_the_run_did(templates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counted(self: nn.Linear, x: Tensor) -> Tensor:
        sizes.append(len(x))
        return F.linear(x, self.weight, self.bias)

    monkeypatch.setattr(nn.Linear, "forward", counted)
    (templates.parent / "config.yaml").write_text("data: digits\nbatch_size: 100\n")
    assert main(["supervised", "eval", str(templates)]) == 0
    assert max(sizes) == 100


@pytest.mark.parametrize("percent", ["-1", "101"])
def test_a_percent_that_is_none_is_refused(templates: Path, capsys: pytest.CaptureFixture[str], percent: str) -> None:
    assert main(["supervised", "eval", str(templates), f"--corrupt={percent}"]) == 2
    assert f"0 to 100, got {percent}" in capsys.readouterr().err
