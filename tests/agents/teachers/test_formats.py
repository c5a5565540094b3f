import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from agents.teachers.formats import FORMAT, Card, is_native, load_agent, read_card, save_agent
from envs.preprocessing import ALE, Preprocessing
from kfrl.errors import UserError
from kfrl.nets.atari.net import AtariNet

Net = Callable[[int], AtariNet]
ACTIONS = ("NOOP", "FIRE", "RIGHT", "LEFT")


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def card(small_net: Net) -> Card:
    return Card(
        game="breakout",
        actions=ACTIONS,
        arch=small_net(4).arch,
        method="knowledge-flow",
        steps=123_456,
        seed=7,
        teachers=("seaquest", "pong"),
        protocol={"name": "paper", "sticky": 0.0},
        evaluation={"scores": [1.0, 2.5], "mean": 1.75},
        preprocessing=Preprocessing((0.2, 0.3, 0.5), (110, 18), "linear", fire_reset=True),
        commit="abc123",
        notes="größer, 100 %",
    )


@pytest.fixture
def agent(tmp_path: Path, small_net: Net, card: Card) -> Path:
    path = tmp_path / "agent.safetensors"
    save_agent(path, small_net(4), card)
    return path


def refused(path: Path, *words: str) -> None:
    for read in (load_agent, read_card):
        with pytest.raises(UserError) as error:
            read(path)
        assert path.name in str(error.value)
        assert any(word in str(error.value) for word in words), str(error.value)


# --- our own files ------------------------------------------------------------------------------------------


def test_weights_and_card_come_back_bit_for_bit(tmp_path: Path, card: Card, obs: Tensor) -> None:
    net = AtariNet(4, ((4, 8, 8), (5, 4, 2)), 8)
    card = Card(**{**vars(card), "arch": net.arch})
    path = tmp_path / "deep" / "agent.safetensors"
    save_agent(path, net, card)
    teacher = load_agent(path)
    assert teacher.card == card == read_card(path)
    assert teacher.card.mean_score == 1.75
    ours, saved = net.state_dict(), teacher.net.state_dict()
    assert ours.keys() == saved.keys()
    assert all(torch.equal(ours[name], saved[name]) for name in ours)
    for before, after in zip(net(obs), teacher.net(obs), strict=True):
        assert torch.equal(before, after)


def test_a_loaded_agent_is_frozen_and_named(agent: Path) -> None:
    teacher = load_agent(agent)
    assert (teacher.name, teacher.path) == ("agent", agent)
    assert load_agent(agent, "mentor").name == "mentor"
    assert not teacher.net.training
    assert not any(parameter.requires_grad for parameter in teacher.net.parameters())


def test_saving_leaves_the_net_as_it_was(tmp_path: Path, small_net: Net, card: Card) -> None:
    net = small_net(4)
    before = {name: (tensor.clone(), tensor.stride()) for name, tensor in net.state_dict().items()}
    save_agent(tmp_path / "a.safetensors", net, card)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name][0])
        assert tensor.stride() == before[name][1]


def test_a_file_says_whether_it_is_ours(tmp_path: Path, agent: Path, small_net: Net) -> None:
    assert is_native(agent)
    write_foreign(tmp_path / "foreign.safetensors", small_net(4), {"format": "pt"})
    torch.save(small_net(4).state_dict(), tmp_path / "net.pth")
    assert not any(is_native(tmp_path / name) for name in ("foreign.safetensors", "net.pth", "none", "."))
    agent.write_bytes(agent.read_bytes()[:100])
    assert not is_native(agent)


def test_a_card_without_preprocessing_is_of_ale_screens(agent: Path, tmp_path: Path, small_net: Net) -> None:
    card = {"game": "breakout", "actions": list(ACTIONS), "arch": small_net(4).arch}
    write_foreign(agent, small_net(4), {"format": FORMAT, "card": json.dumps(card)})
    assert read_card(agent).preprocessing == ALE


def test_a_net_that_was_not_evaluated_has_no_score(small_net: Net) -> None:
    assert Card("pong", ACTIONS, small_net(4).arch).mean_score is None


def test_a_header_of_any_length_is_read(tmp_path: Path, small_net: Net) -> None:
    # A safetensors file starts with its header's length: 0x80 is also how a pickle starts, and "PK" a zip archive.
    net, path, starts = small_net(4), tmp_path / "a.safetensors", set()
    for length in [*range(0, 256, 8), 0x4B50]:
        save_agent(path, net, Card("breakout", ACTIONS, net.arch, notes=""))
        filler = (length - int.from_bytes(path.read_bytes()[:8], "little")) % (1 << (16 if length > 255 else 8))
        save_agent(path, net, Card("breakout", ACTIONS, net.arch, notes="x" * filler))
        starts.add(path.read_bytes()[:2] if length > 255 else path.read_bytes()[:1])
        assert len(load_agent(path).card.notes) == filler
    assert starts == {*(bytes([low]) for low in range(0, 256, 8)), b"PK"}


# --- files that are not -------------------------------------------------------------------------------------


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none.safetensors", "There is no file")
    refused(tmp_path, "There is no file")


def test_a_truncated_file_is_refused_wherever_it_was_cut(agent: Path) -> None:
    whole = agent.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    lengths = [0, 1, 2, 7, 8, 9, 10, 100, header - 1, header, header + 1, len(whole) // 2, len(whole) - 1]
    for length in lengths:
        agent.write_bytes(whole[:length])
        refused(agent, "truncated")
    agent.write_bytes(whole + b"\0")
    refused(agent, "truncated or damaged")


def test_a_damaged_header_is_refused(agent: Path) -> None:
    whole = agent.read_bytes()
    for position in (8, 12, 40):
        agent.write_bytes(whole[:position] + b"\xff\x00" + whole[position + 2 :])
        refused(agent, "truncated or damaged", "not a safetensors file", "cannot", "can read")


def test_a_torch_file_is_refused(tmp_path: Path, small_net: Net) -> None:
    path = tmp_path / "net.safetensors"
    torch.save(small_net(4).state_dict(), path)
    refused(path, "zip archive (a torch.save or Stable-Baselines3 file?)")


def test_a_text_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.safetensors"
    path.write_text("these are no weights")
    refused(path, "not a safetensors file")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_in_a_pickle_never_runs(tmp_path: Path, protocol: int) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.safetensors"
    path.write_bytes(pickle.dumps(Evil(marker), protocol))
    refused(path, "pickle", "not a safetensors file")
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists(), "the file would not have run anything anyway"


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_torch_file_never_runs(tmp_path: Path, zipped: bool) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.pth"
    torch.save({"conv1.weight": Evil(marker)}, path, _use_new_zipfile_serialization=zipped)
    refused(path, "zip archive", "pickle")
    assert not marker.exists()


def write_foreign(path: Path, net: AtariNet, metadata: dict[str, str] | None) -> None:
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, path, metadata)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"card": "{}"}])
def test_safetensors_without_our_card_are_refused(
    tmp_path: Path, small_net: Net, metadata: dict[str, str] | None
) -> None:
    path = tmp_path / "foreign.safetensors"
    write_foreign(path, small_net(4), metadata)
    refused(path, "without kfrl's card")


@pytest.mark.parametrize(
    "change",
    [
        None,
        {"game": None},
        {"game": 3},
        {"actions": None},
        {"actions": "NOOP"},
        {"actions": [1, 2, 3, 4]},
        {"arch": None},
        {"arch": "atari"},
        {"evaluation": None},
        {"steps": "many"},
        {"unheard_of": 1},
    ],
)
def test_a_card_that_is_none_of_ours_is_refused(tmp_path: Path, small_net: Net, change: dict[str, Any] | None) -> None:
    path, net = tmp_path / "foreign.safetensors", small_net(4)
    card = {"game": "breakout", "actions": list(ACTIONS), "arch": net.arch, "teachers": []}
    write_foreign(path, net, {"format": FORMAT, "card": json.dumps(card)})
    load_agent(path)
    text = {} if change is None else {"card": json.dumps(card | change)}
    write_foreign(path, net, {"format": FORMAT, **text})
    refused(path, "its card")


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '"breakout"', "{}"])
def test_a_card_that_is_no_card_is_refused(tmp_path: Path, small_net: Net, text: str) -> None:
    path = tmp_path / "foreign.safetensors"
    write_foreign(path, small_net(4), {"format": FORMAT, "card": text})
    refused(path, "its card")


@pytest.mark.parametrize(
    ("arch", "actions"),
    [
        ({"family": "atari", "convs": [[4, 8, 8]], "hidden": 9}, ACTIONS),
        ({"family": "atari", "convs": [[4, 8, 8], [4, 3, 1]], "hidden": 8}, ACTIONS),
        ({"family": "atari", "convs": [[4, 8, 8]], "hidden": 8}, ACTIONS[:3]),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, small_net: Net, arch: dict[str, Any], actions: tuple[str, ...]
) -> None:
    path = tmp_path / "agent.safetensors"
    save_agent(path, small_net(4), Card("breakout", actions, arch))
    with pytest.raises(UserError, match="do not fit the architecture"):
        load_agent(path)


def test_an_architecture_that_is_none_is_refused(tmp_path: Path, small_net: Net) -> None:
    path = tmp_path / "agent.safetensors"
    save_agent(path, small_net(4), Card("breakout", ACTIONS, {"family": "transformer"}))
    with pytest.raises(UserError, match="Unknown network family 'transformer'"):
        load_agent(path)
