"""Records of finished runs, read from their folders for a comparison."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, MinLen
from safetensors import SafetensorError, safe_open

from agents.config import TrainConfig
from agents.methods import get_method, method_names
from agents.teachers.formats import Card, is_native, read_card
from agents.teachers.store import ZOO, ZOO_PREFIX, Reference, load_teacher
from envs.atari import identify
from envs.games import find_game
from envs.protocols import Protocol
from kfrl.config import load_config, validated
from kfrl.errors import UserError
from kfrl.runs.folder import RUNS, RunFolder
from kfrl.runs.metrics import STEP, read_metrics
from kfrl.sweep.folder import member_of_sweep

TRAINED = "exp_avg."
"""Prefix of the optimiser's statistics in a checkpoint, one for each trained tensor."""


@dataclass(frozen=True)
class TrainingReport:
    """The mean score of the last training games at a number of frames (Machado et al. 2018)."""

    frames: Annotated[int, Ge(0)]
    """Emulator frames of the run's own game."""
    games: Annotated[int, Ge(1)]
    """Number of games: 100, or all if there were fewer."""
    mean: float
    """Mean raw score."""


@dataclass(frozen=True)
class FinalScores:
    """The fields of `eval.json` that a comparison needs: the final games of the student alone."""

    steps: Annotated[int, Ge(0)]
    """Agent steps of training."""
    scores: Annotated[tuple[float, ...], MinLen(1)]
    """Raw score of each game."""
    greedy: bool
    """Whether the most probable action was taken instead of a sampled one."""
    protocol: dict[str, Any]
    versions: dict[str, str]
    source_steps: Annotated[int, Ge(0)] = 0
    """Agent steps in source games, which are not part of the budget."""
    training: tuple[TrainingReport, ...] = ()
    """Reports during training; the last one is from the run's end."""


@dataclass(frozen=True)
class RunRecord:
    """A finished run on a game."""

    path: Path
    config: TrainConfig
    card: Card
    final: FinalScores
    protocol: Protocol
    rows: tuple[Mapping[str, float], ...]
    """The rows of its metrics."""
    deployed: int
    """Number of parameters and buffers in the student's file."""
    trained: int | None
    """Number of trained parameters; None if there is no undamaged checkpoint."""
    teacher_frames: int | None
    """Emulator frames that its teachers were trained on; None if one is unknown."""
    group: str | None = None
    """The user's name for its arm."""
    sweep: str | None = None
    """Its arm's name in its sweep."""

    @property
    def game(self) -> str:
        """The game's name, with its flavour."""
        return self.protocol.game

    @property
    def source_frames(self) -> int:
        """Emulator frames of its source games, which are not part of the budget."""
        return self.final.source_steps * self.protocol.frame_skip

    @property
    def score(self) -> float:
        """Mean raw score of the student alone, over its final games."""
        return sum(self.final.scores) / len(self.final.scores)

    @property
    def last_step(self) -> float:
        """The last step of its learning curve."""
        return max(row[STEP] for row in self.rows)


def read_run(path: Path, group: str | None = None) -> RunRecord:
    """Read one finished run.

    Args:
        path: Its folder.
        group: The user's name for its arm. Without it, a run of a sweep has its arm's name in the sweep.

    Raises:
        UserError: the folder is empty, unfinished, damaged or no result of its sweep; the message gives the reason.
    """
    folder = RunFolder(path)
    if _without_games(folder):
        raise UserError(
            "it has no score, because it had no final games (eval_episodes: 0). Set eval_episodes in its config.yaml, "
            f"then: kfrl train --resume {path}"
        )
    folder.check_finished("kfrl train --resume")
    try:
        return _read(folder, group, None if group else member_of_sweep(path))
    except (OSError, ValueError, csv.Error, SafetensorError) as error:
        raise UserError(f"damaged: {error}") from None


def _without_games(folder: RunFolder) -> bool:
    try:
        return not folder.evaluation.exists() and not load_config(folder.config, TrainConfig).eval_episodes
    except UserError:
        return False


def _read(folder: RunFolder, group: str | None, sweep: str | None) -> RunRecord:
    config = load_config(folder.config, TrainConfig)
    config = replace(config, methods=get_method(config.method_name).resolve_settings(config, method_names()))
    final = _read_scores(folder.evaluation)
    protocol = Protocol.from_dict(final.protocol)
    if find_game(config.game).name != protocol.game:
        raise UserError(f"the game is {config.game} in config.yaml and {protocol.game} in eval.json")
    if final.steps < config.steps:
        raise UserError(f"evaluated after {final.steps:,} of its {config.steps:,} agent steps")
    rows = tuple(read_metrics(folder.metrics))
    if not rows:
        raise UserError("metrics.csv holds no row")
    return RunRecord(
        path=folder.path,
        config=config,
        card=read_card(folder.student),
        final=final,
        protocol=protocol,
        rows=rows,
        deployed=_count(folder.student),
        trained=_trained(folder.checkpoints),
        teacher_frames=_teacher_frames(config.teacher_names, protocol.frame_skip),
        group=group,
        sweep=sweep,
    )


def _read_scores(path: Path) -> FinalScores:
    values = json.loads(path.read_text())
    if not isinstance(values, dict):
        raise UserError(f"{path.name} holds a JSON {type(values).__name__}, expected an object")
    wanted = {field.name for field in fields(FinalScores)}
    final = validated({key: value for key, value in values.items() if key in wanted}, FinalScores, path.name)
    if not all(map(math.isfinite, final.scores)):
        raise UserError(f"{path.name} holds scores that are not finite numbers")
    return final


def _count(path: Path, prefix: str = "") -> int:
    """The size of all tensors in a file whose names start with `prefix`."""
    with safe_open(path, framework="numpy") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]
        return sum(math.prod(file.get_slice(name).get_shape()) for name in names)


def _trained(checkpoints: Path) -> int | None:
    for file in sorted(checkpoints.glob("*.safetensors"), reverse=True):
        try:
            return _count(file, TRAINED) or None
        except (OSError, SafetensorError):
            continue
    return None


def _teacher_frames(references: Sequence[str], frame_skip: int) -> int | None:
    """Frames of all teachers together; None if one is unknown. Reads only files on this machine."""
    total = 0
    for reference in references:
        card = _card(reference)
        if card is None or not card.steps:
            return None
        total += card.steps * int(card.protocol.get("frame_skip", frame_skip))
    return total


def _card(reference: str) -> Card | None:
    """The card of the teacher with an exact reference; None if it cannot be read on this machine."""
    asked = Reference.parse(reference)
    if asked.on_hub:
        return None
    name = reference.removeprefix(ZOO_PREFIX)
    path = Path(asked.place) if name == reference else ZOO / f"{name}.safetensors"
    try:
        return read_card(path) if is_native(path) else load_teacher(asked, RUNS, identify)[0].card
    except (UserError, OSError):
        return None
