"""Nets of other programs, built here with exactly their modules, as the oracle of what was read from their files."""

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from agents.teachers.foreign import ForeignAgent, read_foreign
from envs.preprocessing import ALE, PRESETS
from kfrl.errors import UserError
from kfrl.nets.atari.net import AtariNet

SHARED = Path(__file__).parents[5] / "shared" / "teachers"


def nature(last: int) -> list[nn.Module]:
    convs = [nn.Conv2d(4, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()]
    return [*convs, nn.Conv2d(64, last, 3, stride=1), nn.ReLU(), nn.Flatten(), nn.Linear(last * 49, 512), nn.ReLU()]


class CleanRLAgent(nn.Module):
    """ppo_atari."""

    def __init__(self, actions: int = 6) -> None:
        super().__init__()
        self.network = nn.Sequential(*nature(64))
        self.actor = nn.Linear(512, actions)
        self.critic = nn.Linear(512, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.network(x / 255.0)
        return self.actor(hidden), self.critic(hidden)[:, 0]


class CleanRLQNetwork(nn.Module):
    """dqn_atari."""

    def __init__(self, actions: int = 6) -> None:
        super().__init__()
        self.network = nn.Sequential(*nature(64), nn.Linear(512, actions))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q = self.network(x / 255.0)
        return q, q.max(1).values


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(*nature(32))
        self.critic_linear = nn.Linear(512, 1)


class Dist(nn.Module):
    def __init__(self, actions: int) -> None:
        super().__init__()
        self.linear = nn.Linear(512, actions)


class Ikostrikov(nn.Module):
    """pytorch-a2c-ppo-acktr-gail."""

    def __init__(self, actions: int = 6) -> None:
        super().__init__()
        self.base = Base()
        self.dist = Dist(actions)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.base.main(x / 255.0)
        return self.dist.linear(hidden), self.base.critic_linear(hidden)[:, 0]


def split_biases(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As ACKTR's SplitBias names them: the biases are columns."""
    split = {}
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        split[f"{layer}.module.weight" if part == "weight" else f"{layer}.add_bias._bias"] = (
            tensor if part == "weight" else tensor[:, None]
        )
    return split


OLDER = {
    **{f"base.main.{2 * index}.": f"conv{index + 1}." for index in range(3)},
    "base.main.7.": "linear1.",
    "base.critic_linear.": "critic_linear.",
}
OLDEST = {
    **{f"{layer}weight": f"{name}weight" for layer, name in {**OLDER, "dist.linear.": "actor_linear."}.items()},
    **{f"base.main.{2 * index}.bias": f"ab{index + 1}.bias" for index in range(3)},
    "base.main.7.bias": "ab_fc1.bias",
    "base.critic_linear.bias": "ab_fc2.bias",
    "dist.linear.bias": "ab_fc3.bias",
}
PLAIN = {f"base.main.{2 * index}.": f"conv{index + 1}." for index in range(3)} | {
    "base.main.7.": "fc.",
    "base.critic_linear.": "value.",
    "dist.linear.": "policy.",
}


def renamed(tensors: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    result = {}
    for name, tensor in tensors.items():
        for old, new in names.items():
            name = name.replace(old, new)
        result[name] = tensor
    return result


def agrees(agent: ForeignAgent, net: nn.Module, obs: Tensor) -> None:
    logits, values = agent.net(obs)
    expected_logits, expected_values = net(obs)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values, expected_values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("net", "change", "method", "preprocessing"),
    [
        (CleanRLAgent, lambda tensors: tensors, "cleanrl ppo", "baselines"),
        (CleanRLQNetwork, lambda tensors: tensors, "cleanrl dqn", "baselines"),
        (Ikostrikov, lambda tensors: tensors, "ikostrikov actor-critic", "baselines"),
        (Ikostrikov, split_biases, "ikostrikov actor-critic", "baselines"),
        (Ikostrikov, lambda tensors: renamed(tensors, OLDER), "ikostrikov older actor-critic", "baselines"),
        (Ikostrikov, lambda tensors: renamed(tensors, OLDEST), "ikostrikov oldest actor-critic", "baselines"),
        (Ikostrikov, lambda tensors: renamed(tensors, PLAIN), "imported", "ale"),
    ],
)
@pytest.mark.parametrize("kind", ["torch", "legacy", "safetensors"])
def test_a_published_net_acts_as_in_its_own_program(
    tmp_path: Path, obs: Tensor, net: type[nn.Module], change: Any, method: str, preprocessing: str, kind: str
) -> None:
    original, path = net(), tmp_path / "agent.cleanrl_model"
    tensors = change(dict(original.state_dict()))
    if kind == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "torch")
    agent = read_foreign(path)
    agrees(agent, original, obs)
    assert (agent.method, agent.preprocessing) == (method, PRESETS[preprocessing])


def test_a_q_network_values_a_state_at_its_best_action(tmp_path: Path, obs: Tensor) -> None:
    torch.save(CleanRLQNetwork().state_dict(), tmp_path / "q.pth")
    net = read_foreign(tmp_path / "q.pth").net
    q, values = net(obs)
    assert torch.equal(values, q.max(1).values)
    assert net.arch["head"] == "q"


@pytest.mark.parametrize("convs", [((6, 8, 4),), ((6, 8, 4), (5, 4, 2)), ((6, 8, 4), (5, 4, 2), (4, 3, 1))])
@pytest.mark.parametrize("head", ["actor-critic", "q"])
def test_plain_names_with_any_number_of_convolutions(tmp_path: Path, obs: Tensor, convs: Any, head: Any) -> None:
    net = AtariNet(4, convs, 12, head=head)
    tensors = {name.replace("policy", "q" if head == "q" else "policy"): t for name, t in net.state_dict().items()}
    torch.save(tensors, tmp_path / "net.pth")
    agent = read_foreign(tmp_path / "net.pth")
    assert agent.net.arch == net.arch
    agrees(agent, net, obs)


def test_half_precision_is_read_as_floats(tmp_path: Path, obs: Tensor) -> None:
    net = CleanRLAgent().half()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    agrees(read_foreign(tmp_path / "net.pth"), net.float(), obs)


# --- what is refused ----------------------------------------------------------------------------------------


def refused(path: Path, *words: str, kind: str | None = None) -> None:
    with pytest.raises(UserError) as error:
        read_foreign(path, kind)
    assert path.name in str(error.value)
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)


@pytest.mark.parametrize("kind", ["sb3", "cleanrl", "plain"])
def test_a_format_that_it_is_not(tmp_path: Path, kind: str) -> None:
    torch.save(Ikostrikov().state_dict(), tmp_path / "net.pth")
    read_foreign(tmp_path / "net.pth", "ikostrikov")
    refused(tmp_path / "net.pth", f"not of format {kind}", kind=kind)


def test_a_format_that_there_is_not(tmp_path: Path) -> None:
    torch.save(Ikostrikov().state_dict(), tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"Unknown format 'cleanlr'. Did you mean 'cleanrl'\? Valid: cleanrl, iko"):
        read_foreign(tmp_path / "net.pth", "cleanlr")


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "breakout.pth").touch()
    refused(tmp_path / "braekout.pth", "There is no file", "Did you mean", "breakout.pth")


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"conv1.weight": evil}])
@pytest.mark.parametrize("kind", [*range(pickle.HIGHEST_PROTOCOL + 1), "torch", "legacy"])
def test_code_in_a_pickle_never_runs(tmp_path: Path, kind: int | str, wrap: Any) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.pth"
    content = wrap(Evil(marker))
    if isinstance(kind, int):
        path.write_bytes(pickle.dumps(content, kind))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "torch")
    refused(path, "no code in it ran", "asks for posix.system" if kind in (2, "torch", "legacy") else "")
    assert not marker.exists()
    if isinstance(kind, int):
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.exists(), "the file would not have run anything anyway"


@pytest.mark.parametrize("save", [torch.save, save_file])
def test_a_truncated_file(tmp_path: Path, save: Any) -> None:
    path = tmp_path / "net.pth"
    save({name: tensor.contiguous() for name, tensor in AtariNet(4).state_dict().items()}, path)
    whole = path.read_bytes()
    for length in (0, 1, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path, "truncated")


@pytest.mark.parametrize(
    "content",
    [[torch.zeros(3)], {"weights": 3}, {1: torch.zeros(3)}, {"a": {"b": {"c": {"d": torch.zeros(1)}}}}],
)
def test_no_dict_of_tensors(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "net.pth")
    refused(tmp_path / "net.pth", "expected a dict of tensors by name")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_orig_mod.module.", "module._orig_mod."])
@pytest.mark.parametrize("agent", [CleanRLAgent(), AtariNet(4)], ids=["cleanrl", "plain"])
def test_the_prefixes_of_wrappers_are_no_part_of_a_net(tmp_path: Path, prefix: str, agent: nn.Module) -> None:
    path = tmp_path / "net.pth"
    obs = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
    torch.save(agent.state_dict(), path)
    expected = read_foreign(path).net(obs)
    torch.save({prefix + name: tensor for name, tensor in agent.state_dict().items()}, path)
    for found, value in zip(read_foreign(path).net(obs), expected, strict=True):
        assert torch.equal(found, value)


@pytest.mark.parametrize(
    ("wrap", "entry"),
    [
        (lambda state: {"epoch": 3, "model_state_dict": state, "optimizer_state_dict": {}}, "model_state_dict"),
        (lambda state: {"agent": {"step": 1, "model": state}, "args": {"env_id": "Pong"}}, "agent.model"),
    ],
)
def test_the_only_state_dict_of_a_file_is_meant_and_named(tmp_path: Path, wrap: Any, entry: str) -> None:
    torch.save(wrap(AtariNet(4).state_dict()), tmp_path / "net.pth")
    assert repr(entry) in read_foreign(tmp_path / "net.pth").notes


def test_several_state_dicts_are_listed(tmp_path: Path) -> None:
    state = AtariNet(4).state_dict()
    torch.save({"online": state, "target": state}, tmp_path / "net.pth")
    refused(tmp_path / "net.pth", "2 state dicts: online, target")


def test_the_draft_of_numbered_layers_loads_as_it_is_printed(tmp_path: Path) -> None:
    net = nn.Sequential(*nature(64), nn.Linear(512, 4))
    torch.save(net.state_dict(), tmp_path / "seq.pth")
    with pytest.raises(UserError) as error:
        read_foreign(tmp_path / "seq.pth")
    draft = str(error.value)
    (tmp_path / "seq.yaml").write_text(draft[draft.index("weights:") :])
    assert read_foreign(tmp_path / "seq.yaml").net.head == "q"


def test_a_whole_pickled_module(tmp_path: Path) -> None:
    torch.save(AtariNet(4), tmp_path / "net.pth")
    refused(
        tmp_path / "net.pth",
        "asks for kfrl.nets.atari.net.AtariNet",
        "not unpickled",
        "torch.save(net.state_dict(), ...)",
    )


def test_a_recurrent_policy(tmp_path: Path) -> None:
    net = Ikostrikov()
    net.base.gru = nn.GRU(512, 512)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    refused(tmp_path / "net.pth", "recurrent", "base.gru.weight_hh_l0", "Valid are feed-forward")


@pytest.mark.parametrize("tensors", [{}, nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 4)).state_dict()])
def test_a_policy_without_convolutions(tmp_path: Path, tensors: Any) -> None:
    torch.save(tensors, tmp_path / "net.pth")
    refused(tmp_path / "net.pth", "without convolutions", "Valid are feed-forward convolutional")


def state(**changes: Tensor) -> dict[str, Tensor]:
    return {**AtariNet(4, ((4, 8, 4),), 8).state_dict(), **changes}


@pytest.mark.parametrize(
    "tensors",
    [
        state(extra=torch.zeros(2)),
        state(**{"conv1.weight": torch.zeros(4, 4, 7, 7)}),
        state(**{"conv3.weight": torch.zeros(4, 4, 3, 3)}),
        {name: tensor for name, tensor in state().items() if not name.startswith("value")},
        nn.Sequential(nn.Conv2d(4, 8, 8, 4), nn.LayerNorm([8, 20, 20]), nn.Linear(9, 4)).state_dict(),
    ],
)
def test_shapes_of_no_known_net_are_printed_with_the_yaml_that_would_describe_them(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    torch.save(tensors, tmp_path / "net.pth")
    refused(
        tmp_path / "net.pth",
        "contains a net that kfrl does not recognise",
        *(f"  {name}  {' x '.join(map(str, tensor.shape))}\n" for name, tensor in tensors.items()),
        "weights: net.pth\ngame: ",
        "layers:\n  convs:\n    - {layer: ",
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fc.weight": torch.zeros(8, 99)}, ["has 99 inputs", "screens give 1600", "4 x 84 x 84"]),
        ({"fc.weight": torch.zeros(8, 4 * 15 * 15)}, ["it is for 64 x 64 screens"]),
        ({"conv1.weight": torch.zeros(4, 1, 8, 8)}, ["input of 1 channels", "4 x 84 x 84"]),
        ({"conv1.weight": torch.zeros(4, 12, 8, 8)}, ["input of 12 channels"]),
        ({"conv1.weight": torch.zeros(4, 4, 8, 6)}, ["square kernel", "(4, 4, 8, 6)"]),
        ({"conv1.weight": torch.zeros(4, 4, 8, 8, 1)}, ["without convolutions"]),
        ({"fc.bias": torch.zeros(())}, ["do not fit together"]),
        ({"policy.weight": torch.zeros(4, 9)}, ["do not fit together", "  policy.weight  4 x 9"]),
        ({"policy.weight": torch.zeros(4)}, ["policy to be a linear layer", "(4,)"]),
        ({"policy.bias": torch.full((4,), torch.nan)}, ["not finite"]),
    ],
)
def test_a_net_that_no_teacher_can_be(tmp_path: Path, changes: dict[str, Tensor], words: list[str]) -> None:
    torch.save(state(**changes), tmp_path / "net.pth")
    refused(tmp_path / "net.pth", *words)


# --- published agents ---------------------------------------------------------------------------------------

NAMES = ("a3c_ff-Breakout", "acktr-Seaquest", "acktr-Pong", "acktr-Qbert", "a2c-Breakout", "ppo-Breakout")


@pytest.mark.parametrize("name", NAMES)
def test_published_agents_are_read(obs: Tensor, name: str) -> None:
    source = SHARED / f"{name}.pth"
    if not source.is_file():
        pytest.skip(f"{source} is missing: the foreign agents lie beside the checkout, in shared/teachers")
    facts = json.loads(source.with_suffix(".json").read_text())
    agent = read_foreign(source)
    assert sum(p.numel() for p in agent.net.parameters()) == facts["n_params"]
    assert {name: list(p.shape) for name, p in agent.net.named_parameters()} == facts["shapes"]
    assert agent.preprocessing == ALE

    w = torch.load(source, weights_only=True)
    h = obs / 255
    for index, stride in zip((1, 2, 3), (4, 2, 1), strict=True):
        if f"conv{index}.weight" in w:
            h = nn.functional.conv2d(h, w[f"conv{index}.weight"], w[f"conv{index}.bias"], stride=stride).relu()
    h = nn.functional.linear(h.flatten(1), w["fc.weight"], w["fc.bias"]).relu()
    logits, values = agent.net(obs)
    expected = nn.functional.linear(h, w["policy.weight"], w["policy.bias"])
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)
    expected = nn.functional.linear(h, w["value.weight"], w["value.bias"])[:, 0]
    torch.testing.assert_close(values, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page"),
    ],
)
def test_what_a_download_left_is_called_by_its_name(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_foreign(tmp_path / "net.pth")


def test_torchscript_is_not_opened_and_says_how_to_save_its_weights(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        for name in ("net/data.pkl", "net/code/__torch__.py", "net/constants.pkl"):
            archive.writestr(name, b"")
    with pytest.raises(UserError, match=r"is TorchScript, which is code.*torch.jit.load"):
        read_foreign(tmp_path / "net.pt")


def test_padded_convolutions_are_called_padded(tmp_path: Path) -> None:
    net = nn.Module()
    net.conv1, net.conv2 = nn.Conv2d(4, 16, 8, stride=4, padding=1), nn.Conv2d(16, 32, 4, stride=2, padding=1)
    net.fc, net.policy, net.value = nn.Linear(32 * 10 * 10, 8), nn.Linear(8, 4), nn.Linear(8, 1)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    with pytest.raises(UserError, match="as after padded convolutions"):
        read_foreign(tmp_path / "net.pth")
