"""`kfrl collect`: compute teachers' outputs on a game's observations once, and store them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from annotated_types import Ge

from kfrl.config import split_names
from kfrl.errors import UserError

if TYPE_CHECKING:
    from agents.teachers.formats import Teacher


@dataclass(frozen=True)
class CollectFlags:
    """Play a game and store the teachers' outputs on its observations: logits, values, features.

    Any number of runs can then learn from the file (`kfrl train --answers FILE`), without playing the teachers.
    """

    teachers: str
    """Teachers, comma-separated, as `kfrl train --teachers` takes them."""
    output: Path
    """The file to write, e.g. seaquest.answers."""
    game: str = ""
    """The game to play. Default: the first teacher's."""
    observations: Annotated[int, Ge(1)] = 16_384
    """Number of observations to store; every fourth step of the play is stored, and takes 28 KB."""
    features: Literal["none", "last", "all"] = "last"
    """Layers whose pre-activations are stored: none, each teacher's last hidden layer (for actor-mimic), or all (for
    fold)."""
    actor: str | None = None
    """The policy that plays: `random`, or a teacher by its game, with one action in ten random. Default: the teacher
    of the game, else random."""
    protocol: str = "paper"
    """The protocol, as for `kfrl train`."""
    seed: Annotated[int, Ge(0)] = 0
    """Seed of the games and the actions."""
    runs: Path = Path("runs")
    """The folder of your runs."""


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    from kfrl.config import checked

    flags = checked(tyro.cli(CollectFlags, prog="kfrl collect", args=list(argv)))
    from rich.console import Console
    from rich.progress import Progress

    from agents.answers import collect
    from agents.teachers.store import load_teachers
    from envs.atari import action_set, identify
    from envs.games import Game, find_game
    from envs.protocols import get_protocol
    from kfrl.machine import size

    if flags.output.exists():
        raise UserError(f"{flags.output} exists. Give another --output.")
    teachers, references = load_teachers(split_names(flags.teachers), flags.runs, identify)
    if not teachers:
        raise UserError("No teacher is given. Give --teachers NAME[,NAME...]; `kfrl teachers list` lists them.")
    game = find_game(flags.game or teachers[0].card.game)
    protocol = get_protocol(flags.protocol, game.name)
    actor = _actor(flags.actor, game.name, teachers)
    work = collect(
        flags.output,
        protocol,
        action_set(protocol),
        tuple(zip(teachers, references, strict=True)),
        flags.observations,
        features=flags.features,
        actor=actor,
        seed=flags.seed,
    )
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("Collecting", total=flags.observations)
        for done in work:
            progress.update(task, completed=done)
    names = ", ".join(teacher.name for teacher in teachers)
    print(
        f"Wrote {flags.output}, {size(flags.output.stat().st_size)}: {flags.observations:,} observations of "
        f"{Game(game.name).title}, played by {actor or 'random actions'}, and the answers of {names}"
    )
    print(f"Learn from it: kfrl train --game {protocol.game} --answers {flags.output}")
    return 0


def _actor(asked: str | None, game: str, teachers: Sequence[Teacher]) -> str | None:
    """The name of the teacher that plays; None for random play."""
    names = [teacher.name for teacher in teachers]
    if asked is None:
        return next((teacher.name for teacher in teachers if teacher.card.game == game), None)
    if asked in ("random", *names):
        return None if asked == "random" else asked
    raise UserError(f"--actor {asked} is none of the teachers. Expected random, or one of {', '.join(names)}.")
