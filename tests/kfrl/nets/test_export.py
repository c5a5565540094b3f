"""Exported nets: the same numbers in every format, what they say of themselves, and nets that a format cannot hold."""

import json
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from kfrl.errors import UserError
from kfrl.nets.atari.net import AtariNet
from kfrl.nets.export import SUFFIXES, Format, export
from kfrl.nets.images.registry import make_net

ABOUT = {"name": "<script>", "classes": ["a", "b"]}


@pytest.fixture
def net() -> AtariNet:
    return AtariNet(3, ((4, 8, 8),), 8).eval()


def test_onnx_has_the_same_logits_for_batches_of_any_size(net: AtariNet, obs: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    assert export(net, {"input": obs}, ("logits", "value"), ABOUT, "onnx", path) < 1e-4
    session = onnxruntime.InferenceSession(str(path))
    assert json.loads(session.get_modelmeta().custom_metadata_map["kfrl"]) == ABOUT
    many = torch.randint(0, 256, (5, 4, 84, 84), dtype=torch.uint8)
    for batch in (many, many[:1]):
        logits, values = session.run(["logits", "value"], {"input": batch.numpy()})
        for written, own in zip((logits, values), net(batch), strict=True):
            torch.testing.assert_close(torch.from_numpy(written), own.detach(), rtol=1e-4, atol=1e-5)
    onnx.checker.check_model(onnx.load(path))


def test_torchscript_and_safetensors_too(net: AtariNet, obs: Tensor, tmp_path: Path) -> None:
    export(net, {"input": obs}, ("logits", "value"), ABOUT, "torchscript", tmp_path / "net.pt")
    files = {"kfrl": ""}
    loaded = torch.jit.load(str(tmp_path / "net.pt"), _extra_files=files)
    assert json.loads(files["kfrl"]) == ABOUT
    many = torch.randint(0, 256, (5, 4, 84, 84), dtype=torch.uint8)
    torch.testing.assert_close(loaded(many), net(many))
    export(net, {"input": obs}, ("logits", "value"), ABOUT, "safetensors", tmp_path / "net.safetensors")
    with safe_open(tmp_path / "net.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["kfrl"]) == ABOUT
        held = {name: file.get_tensor(name) for name in file.keys()}
    assert all(torch.equal(held[name], tensor) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(("name", "to"), [("resnet-20", "torchscript"), ("lstm-16", "onnx")])
def test_nets_with_statistics_and_recurrence(name: str, to: Format, tmp_path: Path) -> None:
    net = make_net(name, (1, 28, 28), 3).eval()
    assert export(net, {"input": torch.rand(3, 1, 28, 28)}, ("logits",), {}, to, tmp_path / f"net{SUFFIXES[to]}") < 1e-3


class Unknown(nn.Module):
    """Has an operator that ONNX has not."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvals(x).real


def test_a_net_that_onnx_does_not_know_is_refused_and_no_file_is_left(tmp_path: Path) -> None:
    example = torch.eye(3).repeat(2, 1, 1)
    with pytest.raises(
        UserError, match=r"ONNX does not support all operators of this net: .*linalg_eig.*--to torchscript"
    ):
        export(Unknown(), {"input": example}, ("x",), {}, "onnx", tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
    assert export(Unknown(), {"input": example}, ("x",), {}, "torchscript", tmp_path / "net.pt") == 0.0


class Fickle(nn.Module):
    """Says another thing each time, so that a trace of it cannot be right."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls


def test_a_net_that_came_out_differently_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="differ on the same input"):
        export(Fickle(), {"input": torch.zeros(2, 1)}, ("x",), {}, "torchscript", tmp_path / "net.pt")
    assert not list(tmp_path.iterdir())


def test_without_the_packages_it_says_what_to_install(
    net: AtariNet, obs: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install onnx onnxscript onnxruntime"):
        export(net, {"input": obs}, ("logits", "value"), {}, "onnx", tmp_path / "net.onnx")
