"""`kfrl teachers`: list, show and import agents that can teach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from kfrl.errors import UserError


@dataclass(frozen=True)
class List:
    """List the agents of your own runs and of the zoo."""

    runs: Path = Path("runs")
    """Where your runs are."""


@dataclass(frozen=True)
class Show:
    """Print one agent's card: where it comes from, its rules, its scores."""

    name: tyro.conf.Positional[str]
    """A path, a run's folder, a game, or zoo:NAME."""
    runs: Path = Path("runs")
    """Where your runs are."""


@dataclass(frozen=True)
class Import:
    """Convert a PyTorch state dict with layers conv1.. / fc / policy / value into an agent file."""

    file: tyro.conf.Positional[Path]
    """A state dict, as torch.save wrote it. Only tensors are read; nothing in it can run."""
    game: str
    """The game that the agent plays."""
    output: Path
    """The agent file to write, e.g. breakout.safetensors."""
    protocol: str = "paper"
    """The rules that its action set belongs to."""
    notes: str = ""
    """Where it comes from, for its card."""


Command = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Import, tyro.conf.subcommand("import")]
)


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    command = tyro.cli(
        Command,
        prog="kfrl teachers",
        description=__doc__,
        args=list(argv) or ["list"],
    )
    if isinstance(command, List):
        _list(command)
    elif isinstance(command, Show):
        _show(command)
    else:
        _import(command)
    return 0


def _list(command: List) -> None:
    from rich.console import Console
    from rich.table import Table

    from envs.games import find_game
    from kfrl.stats import human_normalised
    from kfrl.teachers.store import list_teachers

    table = Table("--teachers", "game", "method", "steps", "mean score", "human-normalised", "protocol")
    for entry in list_teachers(command.runs):
        card, score = entry.card, entry.card.mean_score
        normalised = None if score is None else human_normalised(score, card.game)
        table.add_row(
            entry.reference,
            find_game(card.game).title,
            card.method,
            f"{card.steps:,}",
            "not evaluated" if score is None else f"{score:,.1f}",
            "" if normalised is None else f"{normalised:.1%}",
            str(card.protocol.get("name", "")),
        )
    Console().print(table)


def _show(command: Show) -> None:
    import yaml
    from rich.console import Console

    from kfrl.provenance import sha256
    from kfrl.teachers.store import find_teacher

    entry = find_teacher(command.name, command.runs)
    card = entry.card
    facts = {
        "file": str(entry.path),
        "sha256": sha256(entry.path),
        "game": card.game,
        "method": card.method,
        "agent steps": card.steps,
        "seed": card.seed,
        "teachers": list(card.teachers),
        "commit": card.commit,
        "notes": card.notes,
        "actions": list(card.actions),
        "net": card.arch,
        "trained under": card.protocol,
        "evaluation": card.evaluation,
    }
    text = yaml.safe_dump(facts, sort_keys=False, default_flow_style=None, width=110)
    Console().print(text, highlight=False, soft_wrap=True, end="")


def _import(command: Import) -> None:
    from rich.console import Console

    from envs.atari import action_set
    from envs.protocols import get_protocol
    from kfrl.teachers.formats import import_state_dict

    if command.output.exists():
        raise UserError(f"{command.output} exists. Give another --output.")
    if command.output.suffix != ".safetensors":
        raise UserError(f"An agent file ends in .safetensors, got {command.output.name!r}.")
    protocol = get_protocol(command.protocol, command.game)
    card = import_state_dict(command.file, command.output, protocol.game, action_set(protocol), command.notes)
    Console().print(
        f"Wrote {command.output}: {card.game}, {len(card.actions)} actions, net {card.arch}.\n"
        f"Play it: kfrl eval {command.output}",
        highlight=False,
        soft_wrap=True,
    )
