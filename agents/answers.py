"""Files of teachers' answers for games: observations and each teacher's outputs on them, computed once.

Tensors of a file, with N rows each: `observations` (N, stack, H, W) uint8, and for each teacher `<name>/logits` (N, A),
`<name>/values` (N,) and `<name>/features/<layer>` (N, ...), the pre-activations of the stored layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agents.actions import in_order
from agents.observations import play, steps_for
from agents.policies import matched_policy
from agents.teachers.formats import Card, Teacher
from envs.protocols import Protocol
from kfrl.errors import UserError
from kfrl.nets import state_size
from kfrl.nets.hooks import layer_shapes, with_features
from kfrl.nets.links import hidden_layers
from kfrl.nets.memory_format import screens
from kfrl.runs.cards import read_net
from kfrl.runs.provenance import commit, sha256
from kfrl.runs.streams import streaming

FORMAT = "kfrl-answers-1"
OBSERVATIONS = "observations"


class Absent(nn.Module):
    """Placeholder for the net of a teacher on games of which only stored answers are available."""

    def __init__(self, head: str) -> None:
        """Keep the teacher's kind of head, `q` for a Q-network."""
        super().__init__()
        self.head = head

    def forward(self, obs: Tensor) -> Tensor:
        """Refuse the call.

        Raises:
            UserError: always.
        """
        raise UserError("Only stored answers of this teacher are available, not its net. Give it with --teachers.")


@dataclass(frozen=True)
class Answerer:
    """A teacher on games whose answers are stored."""

    name: str
    reference: str
    """Its exact reference for `--teachers`."""
    sha256: str
    card: Card
    hidden: str = ""
    """Its last hidden layer."""
    layers: tuple[str, ...] = ()
    """The layers whose pre-activations are stored."""


@dataclass(frozen=True)
class AnswersCard:
    """The card of a file of answers for a game."""

    game: str
    protocol: dict[str, Any]
    count: int
    """N, the number of observations."""
    played_by: str
    """The policy that played: a teacher's name, with a tenth of its actions random, or `random`."""
    steps: int
    """Agent steps of the play."""
    seed: int
    teachers: tuple[Answerer, ...]
    commit: str = "unknown"


@dataclass(frozen=True)
class Answers:
    """An open file of answers; its tensors are read from the disk when they are used."""

    path: Path
    card: AnswersCard
    tensors: dict[str, Tensor] = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> Answers:
        """Open a file.

        Raises:
            UserError: the file is missing, truncated, or not a file of answers.
        """
        try:
            return cls(path, *read_net(path, AnswersCard, FORMAT, with_tensors=True))
        except UserError as error:
            raise UserError(f"{error} `kfrl collect` writes files of answers.") from None

    @property
    def observations(self) -> Tensor:
        """(N, stack, H, W) uint8."""
        return self.tensors[OBSERVATIONS]

    @property
    def sha256(self) -> str:
        """The checksum of the file; it is read from start to end."""
        return sha256(self.path)

    @property
    def protocol(self) -> Protocol:
        """The protocol of the play."""
        return Protocol.from_dict(self.card.protocol)

    def logits(self, teacher: Teacher, actions: Sequence[str], rows: Tensor) -> Tensor:
        """A teacher's logits (n, A) for `rows` (n,), in the order of `actions`; -inf for actions that it lacks."""
        asked = self.asked(teacher)
        return in_order(self.tensors[f"{asked.name}/logits"][rows], asked.card.actions, actions)

    def features(self, teacher: Teacher, layer: str) -> Tensor:
        """A teacher's pre-activations (N, ...) of a layer.

        Raises:
            UserError: they are not stored.
        """
        asked = self.asked(teacher)
        if layer not in asked.layers:
            raise UserError(
                f"{self.path} has no features of layer {layer} of teacher {teacher.name!r}, only of "
                f"{', '.join(asked.layers) or 'none'}. Collect them: kfrl collect --features all ..."
            )
        return self.tensors[f"{asked.name}/features/{layer}"]

    def said(self, taps: Iterable[tuple[str, str]], teachers: Mapping[str, Teacher]) -> tuple[Tensor, ...]:
        """The features (N, ...) of each (teacher's name, layer) in `taps`."""
        return tuple(self.features(teachers[name], layer) for name, layer in taps)

    def spread(self, count: int, policy: object = None) -> Tensor:
        """About `count` observations, evenly spread over the play; a replacement for `Play` without playing."""
        return self.observations[:: max(1, self.card.count // count)][:count]

    def asked(self, teacher: Teacher) -> Answerer:
        """The file's entry for a teacher, found by its checksum, because its name may differ."""
        return next(each for each in self.card.teachers if each.sha256 == teacher.sha256)

    def absent(self) -> Iterator[Teacher]:
        """The teachers of the file, without their nets."""
        for each in self.card.teachers:
            head = str(each.card.arch.get("head", ""))
            yield Teacher(each.name, Absent(head), each.card, self.path, checksum=each.sha256)


def open_all(paths: Iterable[Path]) -> tuple[Answers, ...]:
    """Open files of answers, one for each game.

    Raises:
        UserError: a file cannot be read, or two files have the same game.
    """
    files = tuple(Answers.open(path) for path in paths)
    games = [file.card.game for file in files]
    for file in files:
        if games.count(file.card.game) > 1:
            raise UserError(f"--answers takes one file for each game, got several of {file.card.game}.")
    return files


def answers_for(files: Sequence[Answers], protocol: Protocol) -> Answers:
    """The file of answers for a game.

    Raises:
        UserError: there is none, or it was played under other rules.
    """
    found = next((file for file in files if file.card.game == protocol.game), None)
    if found is None:
        has = ", ".join(file.card.game for file in files)
        raise UserError(
            f"No file of --answers has the game {protocol.game}, only {has}. Collect one: kfrl collect --game "
            f"{protocol.game} --teachers NAME --output FILE"
        )
    if found.protocol.rules != protocol.rules:
        raise UserError(
            f"{found.path} was played under the rules of {found.protocol.name}, and the run has those of "
            f"{protocol.name}. Collect again with --protocol {protocol.name}, or train with --protocol "
            f"{found.protocol.name}."
        )
    return found


def check_answerers(files: Sequence[Answers], teachers: Sequence[Teacher]) -> None:
    """Refuse files without the answers of the given teachers.

    Raises:
        UserError: a teacher has no answers, or its file has changed since they were collected.
    """
    asked = {each.name: (each, file) for file in files for each in file.card.teachers}
    known = {each.sha256 for file in files for each in file.card.teachers}
    for teacher in teachers:
        if teacher.sha256 in known:
            continue
        if teacher.name in asked:
            each, file = asked[teacher.name]
            raise UserError(
                f"{file.path} has the answers of a teacher {teacher.name} whose file has the SHA-256 {each.sha256}; "
                f"that of {teacher.path} is {teacher.sha256}. Collect the answers of this file, or give --teachers "
                f"{each.reference}."
            )
        raise UserError(
            f"No file of --answers has the answers of teacher {teacher.name} ({teacher.path}), only of "
            f"{', '.join(asked)}. Collect them: kfrl collect --teachers ... --output FILE"
        )


def collect(
    path: Path,
    protocol: Protocol,
    actions: Sequence[str],
    teachers: Sequence[tuple[Teacher, str]],
    count: int,
    *,
    features: str = "last",
    actor: str | None = None,
    seed: int = 0,
) -> Iterator[int]:
    """Play a game, compute every teacher's outputs on every fourth observation, and write them to `path` atomically.

    Memory holds no more than one step of all games.

    Args:
        path: The file.
        protocol: The game and its rules.
        actions: The names of the game's actions.
        teachers: The teachers with their exact references.
        count: N.
        features: `none`, `last` (the last hidden layer of each teacher) or `all`: hidden layers and heads.
        actor: The name of the teacher that plays, with a tenth of random actions; None: random play.
        seed: Seed of the games and the actions.

    Returns:
        An iterator that does the work; each step gives the number of rows written so far.
    """
    obs = torch.zeros(1, protocol.frame_stack, protocol.screen_size, protocol.screen_size, dtype=torch.uint8)
    layers = {teacher.name: _layers(teacher, features) for teacher, _ in teachers}
    shapes = {OBSERVATIONS: ("U8", (count, *obs.shape[1:]))}
    for teacher, _ in teachers:
        shapes |= _shapes(teacher, layers[teacher.name], obs, count)
    asked = tuple(
        Answerer(
            teacher.name,
            reference,
            teacher.sha256,
            teacher.card,
            hidden=_hidden(teacher)[-1],
            layers=layers[teacher.name],
        )
        for teacher, reference in teachers
    )
    card = AnswersCard(
        protocol.game, protocol.to_dict(), count, actor or "random", steps_for(count), seed, asked, commit()
    )
    policy = None
    if actor is not None:
        playing = next(teacher for teacher, _ in teachers if teacher.name == actor)
        policy = matched_policy(playing.net, playing.card.actions, actions)
    with streaming(path, shapes, card, FORMAT) as rows:
        start = 0
        for seen in play(protocol, count, policy, seed):
            part = seen[: count - start]
            end = start + len(part)
            rows[OBSERVATIONS][start:end] = part
            for teacher, _ in teachers:
                for name, answer in _ask(teacher, layers[teacher.name], torch.from_numpy(part)):
                    rows[name][start:end] = answer.numpy()
            start = end
            yield start


def _layers(teacher: Teacher, features: str) -> tuple[str, ...]:
    hidden = _hidden(teacher)
    heads = tuple(getattr(teacher.net, "head_layers", ()))
    return {"none": (), "last": hidden[-1:], "all": (*hidden, *heads)}[features]


def _hidden(teacher: Teacher) -> tuple[str, ...]:
    if state_size(teacher.net):
        raise UserError(
            f"Teacher {teacher.name!r} has an LSTM, whose answers depend on earlier observations, and stored answers "
            "are to single ones. Collect from feed-forward teachers."
        )
    found = tuple(hidden_layers(teacher.net))
    if not found:
        raise UserError(f"Teacher {teacher.name!r} has no hidden layer, so it has no features to store.")
    return found


def _shapes(teacher: Teacher, layers: Sequence[str], obs: Tensor, count: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    name = teacher.name
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        f"{name}/logits": ("F32", (count, len(teacher.card.actions))),
        f"{name}/values": ("F32", (count,)),
    }
    found = layer_shapes(teacher.net, layers, obs) if layers else {}
    return shapes | {f"{name}/features/{layer}": ("F32", (count, *shape)) for layer, shape in found.items()}


@torch.no_grad()
def _ask(teacher: Teacher, layers: Sequence[str], obs: Tensor) -> Iterator[tuple[str, Tensor]]:
    (logits, values), features = with_features(teacher.net, layers, screens(obs))
    yield f"{teacher.name}/logits", logits
    yield f"{teacher.name}/values", values
    for layer, z in features.items():
        yield f"{teacher.name}/features/{layer}", z
