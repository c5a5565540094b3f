"""Export of a run's student for other programs, with a description of its input and outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from agents.teachers.formats import Teacher
from agents.teachers.store import load_teacher
from envs.atari import identify
from envs.games import Game
from envs.preprocessing import ALE
from envs.protocols import Protocol, get_protocol
from kfrl.nets import state_size
from kfrl.nets.export import SUFFIXES, Format, export
from kfrl.runs.atomic import write_text
from kfrl.runs.cards import has_format
from kfrl.runs.folder import STUDENT_FILE
from kfrl.supervised import classifiers
from kfrl.supervised.data.batches import Normalisation


@dataclass(frozen=True)
class Exportable:
    """A net to export, with its description."""

    net: nn.Module
    example: Mapping[str, Tensor]
    """Name of each input -> a batch of it."""
    outputs: tuple[str, ...]
    about: dict[str, Any]

    def write(self, to: Format, path: Path) -> float:
        """Write the net to `path` and its description beside it; returns the largest difference of its outputs.

        Raises:
            UserError: see `kfrl.nets.export.export`.
        """
        about = self.about | {"format": to}
        worst = export(self.net, self.example, self.outputs, about, to, path)
        write_text(path.with_suffix(path.suffix + ".json"), json.dumps(about, indent=1) + "\n")
        return worst


def default_path(reference: str, to: Format) -> Path:
    """The default file of an export: in the run's folder, or in the current folder for another reference."""
    place = Path(reference)
    stem = place / "exported" if place.is_dir() else Path(place.stem.removeprefix("zoo:") + "-exported")
    return stem.with_suffix(SUFFIXES[to])


def exportable(reference: str, runs: Path) -> Exportable:
    """Load the net of a run on a game or on images, or of another reference that `--teachers` accepts.

    Raises:
        UserError: there is no such net, or its file cannot be used.
    """
    path = Path(reference)
    file = path / STUDENT_FILE if path.is_dir() else path
    if has_format(file, classifiers.FORMAT):
        return _classifier(classifiers.load_classifier(file))
    return _agent(load_teacher(reference, runs, identify)[0])


class _Pixels(nn.Module):
    """A classifier that includes its normalisation: images (B, C, H, W) uint8 -> logits (B, classes)."""

    def __init__(self, net: nn.Module, normalisation: Normalisation) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(normalisation.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(normalisation.std).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        centred = pixels.float() / 255 - self.get_buffer("mean")
        logits: Tensor = self.net(centred / self.get_buffer("std"))
        return logits


def _classifier(teacher: classifiers.Teacher) -> Exportable:
    card = teacher.card
    net = _Pixels(teacher.net, Normalisation(card.mean, card.std)).eval()
    example = torch.randint(256, (3, *card.input_shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    about = {
        "kind": "image classifier",
        "input": {
            "name": "input",
            "shape": ["batch", *card.input_shape],
            "type": "uint8",
            "meaning": "pixels, channels first; the normalisation is part of the file",
        },
        "normalisation": {"mean": list(card.mean), "std": list(card.std), "of": "pixels / 255, in the file"},
        "outputs": {"logits": {"shape": ["batch", len(card.classes)], "meaning": "one for each of classes"}},
        "classes": list(card.classes),
        "data": card.data,
        "arch": card.arch,
        "provenance": _provenance(card),
    }
    return Exportable(net, {"input": example}, ("logits",), about)


class _Stepped(nn.Module):
    """A recurrent net as a function: observations and states -> logits, values and the next states."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, obs: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = cast(Any, self.net).step(obs, state)
        return found


def _agent(agent: Teacher) -> Exportable:
    card = agent.card
    protocol = Protocol.from_dict(card.protocol) if card.protocol else get_protocol("paper", card.game)
    shape = (protocol.frame_stack, protocol.screen_size, protocol.screen_size)
    example = torch.randint(256, (3, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    is_q = card.arch.get("head") == "q"
    about = {
        "kind": "agent",
        "game": card.game,
        "input": {
            "name": "input",
            "shape": ["batch", *shape],
            "type": "uint8",
            "meaning": f"the last {protocol.frame_stack} gray screens, oldest first, zeros before a game's first; "
            "divided by 255 in the file",
        },
        "outputs": {
            "logits": {
                "shape": ["batch", len(card.actions)],
                "meaning": "Q values" if is_q else "of the policy softmax(logits), from which actions are drawn",
            },
            "value": {"shape": ["batch"], "meaning": "of the state, in rewards as the learner saw them"},
        },
        "actions": list(card.actions),
        "preprocessing": {
            "screen": f"ale-py's gray screen, the maximum of the last two of {protocol.frame_skip} frames, resized to "
            f"{protocol.screen_size} x {protocol.screen_size} by OpenCV's INTER_AREA",
            "own": None if card.preprocessing == ALE else asdict(card.preprocessing),
            "protocol": protocol.to_dict(),
        },
        "gymnasium": _gymnasium(protocol),
        "arch": card.arch,
        "provenance": _provenance(card) | {"sha256": agent.sha256, "steps": card.steps, "caveat": card.caveat},
    }
    numbers = state_size(agent.net)
    if not numbers:
        return Exportable(agent.net, {"input": example}, ("logits", "value"), about)
    about["state"] = {
        "input": "state",
        "output": "next_state",
        "shape": ["batch", numbers],
        "type": "float32",
        "meaning": "zeros at the start of an episode, else the next_state of the last step",
        "an episode ends with": "a life" if protocol.episodic_life else "the game",
    }
    inputs = {"input": example, "state": torch.rand(len(example), numbers) * 2 - 1}
    return Exportable(_Stepped(agent.net), inputs, ("logits", "value", "next_state"), about)


def _gymnasium(protocol: Protocol) -> dict[str, Any] | None:
    """Arguments for `gymnasium.make_vec` to play under the same rules; None if Gymnasium lacks these rules."""
    game = Game(protocol.game)
    if protocol.fire_reset or game.flavour is not None:
        return None
    return {
        "id": f"ALE/{game.title}-v5",
        "kwargs": {
            "frameskip": protocol.frame_skip,
            "repeat_action_probability": protocol.sticky,
            "full_action_space": protocol.full_action_set,
            "max_num_frames_per_episode": protocol.max_frames,
            "maxpool": protocol.max_pool,
            "img_height": protocol.screen_size,
            "img_width": protocol.screen_size,
            "stack_num": protocol.frame_stack,
            "grayscale": True,
            # ale-py draws from [0, noop_max - 1].
            "noop_max": protocol.noop_max + 1,
            "episodic_life": False,
            "reward_clipping": False,
            "use_fire_reset": False,
        },
    }


def _provenance(card: Any) -> dict[str, Any]:
    return {
        "method": card.method,
        "seed": card.seed,
        "teachers": list(card.teachers),
        "teacher_sha256": list(card.teacher_sha256),
        "evaluation": card.evaluation,
        "commit": card.commit,
    }
