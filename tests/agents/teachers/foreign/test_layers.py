"""Layer tables in YAML."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from agents.teachers.foreign import read_foreign
from envs.preprocessing import ALE, PRESETS, Preprocessing
from kfrl.errors import UserError


class Strange(nn.Module):
    """Names, strides, scale and frame order that nobody else has."""

    def __init__(self) -> None:
        super().__init__()
        self.eyes = nn.Sequential(nn.Conv2d(4, 6, 7, stride=3), nn.ReLU(), nn.Conv2d(6, 5, 5, stride=2, bias=False))
        self.body = nn.Linear(5 * 11 * 11, 9)
        self.pi, self.v, self.unused = nn.Linear(9, 3), nn.Linear(9, 1), nn.Linear(2, 2)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(self.eyes(frames).relu().flatten(1)).relu()
        return self.pi(hidden), self.v(hidden)[:, 0]


def describe(**changes: Any) -> dict[str, Any]:
    layers = {
        "convs": [{"layer": "eyes.0", "stride": 3}, {"layer": "eyes.2", "stride": 2}],
        "fc": "body",
        "policy": "pi",
        "value": "v",
        "ignore": ["unused."],
    }
    layers |= changes.pop("layers", {})
    return {"weights": "strange.pth", "game": "Freeway", "layers": layers, **changes}


@pytest.fixture
def strange(tmp_path: Path) -> Strange:
    net = Strange()
    torch.save(net.state_dict(), tmp_path / "strange.pth")
    return net


def write(folder: Path, table: dict[str, Any]) -> Path:
    path = folder / "strange.yaml"
    path.write_text(yaml.safe_dump(table))
    return path


def test_a_table_makes_a_net_of_any_names_and_strides(tmp_path: Path, strange: Strange, obs: Tensor) -> None:
    table = describe(score=31.5, method="mine", steps=7, notes="found", actions=["UP", "NOOP", "DOWN"])
    agent = read_foreign(write(tmp_path, table))
    for ours, theirs in zip(agent.net(obs), strange(obs / 255), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (agent.game, agent.actions, agent.preprocessing) == ("Freeway", ("UP", "NOOP", "DOWN"), ALE)
    assert (agent.score, agent.method, agent.steps, agent.notes) == (31.5, "mine", 7, "found")


def test_weights_may_be_safetensors(tmp_path: Path, strange: Strange, obs: Tensor) -> None:
    save_file(strange.state_dict(), tmp_path / "strange.safetensors")
    agent = read_foreign(write(tmp_path, describe(weights="strange.safetensors")))
    torch.testing.assert_close(agent.net(obs)[0], strange(obs / 255)[0], rtol=1e-4, atol=1e-5)


def test_scale_and_frame_order_belong_to_the_loaded_net(tmp_path: Path, strange: Strange, obs: Tensor) -> None:
    with torch.no_grad():
        strange.eyes[0].weight /= 255
    torch.save(strange.state_dict(), tmp_path / "strange.pth")
    table = describe(layers={"scale": "0..255", "stack": "newest-first"})
    logits, values = read_foreign(write(tmp_path, table)).net(obs)
    expected_logits, expected_values = strange(obs.flip(1).float())
    assert not torch.allclose(expected_logits, strange(obs.float())[0], rtol=1e-2), "the order makes no difference"
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values, expected_values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("baselines", PRESETS["baselines"]),
        (
            {"luma": [0.2, 0.3, 0.5], "crop": [110, 18], "resize": "linear"},
            Preprocessing((0.2, 0.3, 0.5), (110, 18), "linear"),
        ),
    ],
)
def test_preprocessing_is_a_presets_name_or_its_fields(
    tmp_path: Path, strange: Strange, given: Any, expected: Preprocessing
) -> None:
    assert read_foreign(write(tmp_path, describe(preprocessing=given))).preprocessing == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": "strang.pth"}, ["There is no file", "strange.pth"]),
        ({"weight": "strange.pth"}, ["Unknown key weight.", "Did you mean weights"]),
        ({"layers": {"fc": "bdoy"}}, ["'bdoy'", "Did you mean 'body'"]),
        ({"layers": {"value": ""}}, ["policy and value, or q alone"]),
        ({"layers": {"q": "pi"}}, ["policy and value, or q alone"]),
        ({"layers": {"convs": []}}, ["at least one convolution"]),
        ({"layers": {"convs": [{"layer": "eyes.0", "stride": 0}]}}, ["stride", "0"]),
        ({"layers": {"convs": [{"layer": "eyes.0", "stride": 3}]}}, ["eyes.2.weight", "ignore"]),
        ({"layers": {"ignore": []}}, ["unused.weight", "ignore"]),
        ({"layers": {"convs": [{"layer": n, "stride": 4} for n in ("eyes.0", "eyes.2")]}}, ["has 605 inputs"]),
        ({"layers": {"convs": [{"layer": n, "stride": 3} for n in ("eyes.2", "eyes.0")]}}, ["input of 6 channels"]),
        ({"layers": {"scale": "0..2"}}, ["scale", "0..255"]),
        ({"layers": {"fc": "eyes.2", "ignore": ["unused.", "body."]}}, ["eyes.2", "linear layer"]),
        ({"preprocessing": "baseline"}, ["Unknown preprocessing 'baseline'", "Did you mean 'baselines'"]),
        ({"actions": ["NOOP"]}, ["1 actions", "3"]),
    ],
)
def test_a_table_that_describes_no_net(
    tmp_path: Path, strange: Strange, changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        read_foreign(write(tmp_path, describe(**changes)))
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)


def test_the_yaml_of_the_error_describes_the_net(tmp_path: Path, obs: Tensor) -> None:
    net = nn.Sequential()
    for name, layer in (
        ("eyes", nn.Conv2d(4, 6, 8, 4)),
        ("more", nn.Conv2d(6, 5, 4, 2)),
        ("body", nn.Linear(5 * 81, 9)),
        ("v", nn.Linear(9, 1)),
        ("pi", nn.Linear(9, 3)),
    ):
        net.add_module(name, layer)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    with pytest.raises(UserError) as error:
        read_foreign(tmp_path / "net.pth")
    path = tmp_path / "net.yaml"
    path.write_text(str(error.value).split("and the layers:")[1])
    logits, values = read_foreign(path).net(obs)
    h = net.body(net.more(net.eyes(obs / 255).relu()).relu().flatten(1)).relu()
    torch.testing.assert_close(logits, net.pi(h), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values, net.v(h)[:, 0], rtol=1e-4, atol=1e-5)
