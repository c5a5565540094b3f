"""Teachers' answers in a file: observations of a game, and what each teacher said of them, computed once.

Tensors of the file, N rows each: `observations` (N, stack, H, W) uint8, and of each teacher `<name>/logits` (N, A),
`<name>/values` (N,) and `<name>/features/<layer>` (N, ...), the pre-activations of the layers that were asked for.
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
from agents.teachers.formats import Card, Teacher
from envs.protocols import Protocol
from kfrl.errors import UserError
from kfrl.nets.hooks import layer_shapes, with_features
from kfrl.nets.links import hidden_layers
from kfrl.nets.memory_format import screens
from kfrl.runs.cards import read_net
from kfrl.runs.provenance import commit
from kfrl.runs.streams import streaming

FORMAT = "kfrl-answers-1"
OBSERVATIONS = "observations"


class Absent(nn.Module):
    """In the place of a teacher's net where its stored answers are all there is."""

    def __init__(self, head: str) -> None:
        """Say which kind it was."""
        super().__init__()
        self.head = head

    def forward(self, obs: Tensor) -> Tensor:
        """Nothing can be asked.

        Raises:
            UserError: always.
        """
        raise UserError("Only stored answers of this teacher are here, not the teacher. Give it by --teachers.")


@dataclass(frozen=True)
class Answerer:
    """A teacher that was asked."""

    name: str
    reference: str
    """What `--teachers` took."""
    sha256: str
    card: Card
    hidden: str = ""
    """Its last hidden layer."""
    layers: tuple[str, ...] = ()
    """Whose pre-activations are stored."""


@dataclass(frozen=True)
class AnswersCard:
    """What a file says of the answers in it."""

    game: str
    protocol: dict[str, Any]
    count: int
    """N."""
    played_by: str
    """A teacher's name, or `random`; a tenth of a teacher's actions are random too."""
    steps: int
    """Agent steps that were played."""
    seed: int
    teachers: tuple[Answerer, ...]
    commit: str = "unknown"


@dataclass(frozen=True)
class Answers:
    """An open file; its tensors are read from the disk as they are used."""

    path: Path
    card: AnswersCard
    tensors: dict[str, Tensor] = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> Answers:
        """Open a file.

        Raises:
            UserError: missing, truncated, or not of this kind.
        """
        try:
            return cls(path, *read_net(path, AnswersCard, FORMAT, with_tensors=True))
        except UserError as error:
            raise UserError(f"{error} Files of answers are what `kfrl collect` writes.") from None

    @property
    def observations(self) -> Tensor:
        """(N, stack, H, W) uint8."""
        return self.tensors[OBSERVATIONS]

    @property
    def protocol(self) -> Protocol:
        """The rules of the play."""
        return Protocol.from_dict(self.card.protocol)

    def logits(self, teacher: Teacher, actions: Sequence[str], rows: Tensor) -> Tensor:
        """A teacher's (n, A) for `rows` (n,) in the order of `actions`; -inf for one that it has not."""
        asked = self.asked(teacher)
        return in_order(self.tensors[f"{asked.name}/logits"][rows], asked.card.actions, actions)

    def features(self, teacher: Teacher, layer: str) -> Tensor:
        """A teacher's pre-activations (N, ...).

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
        """The features (N, ...) of each (teacher's name, layer)."""
        return tuple(self.features(teachers[name], layer) for name, layer in taps)

    def spread(self, count: int, policy: object = None) -> Tensor:
        """Some `count` observations, evenly spread over the play: what `Play` gives, without playing."""
        return self.observations[:: max(1, self.card.count // count)][:count]

    def asked(self, teacher: Teacher) -> Answerer:
        """A teacher as the file has it, whatever it is called there."""
        return next(each for each in self.card.teachers if each.sha256 == teacher.sha256)

    def absent(self) -> Iterator[Teacher]:
        """Its teachers, without their nets."""
        for each in self.card.teachers:
            head = str(each.card.arch.get("head", ""))
            yield Teacher(each.name, Absent(head), each.card, self.path, checksum=each.sha256)


def open_all(paths: Iterable[Path]) -> tuple[Answers, ...]:
    """Open files of answers, one for each game.

    Raises:
        UserError: one cannot be read, or two are of one game.
    """
    files = tuple(Answers.open(path) for path in paths)
    games = [file.card.game for file in files]
    for file in files:
        if games.count(file.card.game) > 1:
            raise UserError(f"--answers takes one file for each game, got several of {file.card.game}.")
    return files


def answers_for(files: Sequence[Answers], protocol: Protocol) -> Answers:
    """The file of a game.

    Raises:
        UserError: there is none, or it was played by other rules.
    """
    found = next((file for file in files if file.card.game == protocol.game), None)
    if found is None:
        has = ", ".join(file.card.game for file in files)
        raise UserError(
            f"No file of --answers is of {protocol.game}, only of {has}. Collect some: kfrl collect --game "
            f"{protocol.game} --teachers NAME --output FILE"
        )
    if found.protocol.rules != protocol.rules:
        raise UserError(
            f"{found.path} was played by the rules of {found.protocol.name}, and the run has those of {protocol.name}. "
            f"Collect anew with --protocol {protocol.name}, or train with --protocol {found.protocol.name}."
        )
    return found


def check_answerers(files: Sequence[Answers], teachers: Sequence[Teacher]) -> None:
    """Refuse answers of other teachers than those that are given.

    Raises:
        UserError: a teacher without answers, or whose file is another than the one that was asked.
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
                f"that of {teacher.path} is {teacher.sha256}. Collect answers of this one, or give --teachers "
                f"{each.reference}."
            )
        raise UserError(
            f"No file of --answers has those of teacher {teacher.name} ({teacher.path}), only of "
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
    """Play a game, ask every teacher of every fourth observation, and write what they say to `path`.

    The file is whole or not there. Nothing larger than one step of all games is in memory.

    Args:
        path: The file.
        protocol: The game and its rules.
        actions: The game's, by name.
        teachers: With the references that find them again.
        count: N.
        features: `none`, `last` (the last hidden layer of each teacher) or `all`: hidden layers and heads.
        actor: The teacher that plays, with a tenth of random actions; None: random play.
        seed: Of the games and the actions.

    Returns:
        An iterator that does the work; each turn gives the number of rows that are written.
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
        policy = lambda seen: in_order(playing.net(seen)[0], playing.card.actions, actions)  # noqa: E731
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
    (logits, values), said = with_features(teacher.net, layers, screens(obs))
    yield f"{teacher.name}/logits", logits
    yield f"{teacher.name}/values", values
    for layer, z in said.items():
        yield f"{teacher.name}/features/{layer}", z
