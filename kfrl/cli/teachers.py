"""`kfrl teachers`: list, show, check, import and pack teachers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from annotated_types import Ge

from kfrl.errors import UserError

if TYPE_CHECKING:
    from agents.evaluation.play import Evaluation
    from agents.teachers.formats import Card


@dataclass(frozen=True)
class List:
    """List the agents of your runs and of the zoo."""

    runs: Path = Path("runs")
    """The folder of your runs."""


@dataclass(frozen=True)
class Show:
    """Print one agent's card: its origin, its rules, its scores."""

    name: tyro.conf.Positional[str]
    """Anything that --teachers accepts: a file, a run's folder, a game, or zoo:NAME."""
    runs: Path = Path("runs")
    """The folder of your runs."""


@dataclass(frozen=True)
class Check:
    """Play an agent under its own rules, with its own and with ale-py's preprocessing; compare with its card."""

    name: tyro.conf.Positional[str]
    """Anything that --teachers accepts: a file, a run's folder, a game, or zoo:NAME."""
    episodes: Annotated[int, Ge(1)] = 30
    """Games to play."""
    seed: Annotated[int, Ge(0)] = 1
    """Seed of the games and of the sampled actions; the final games of runs use 0."""
    greedy: bool = False
    """Take the most probable action instead of sampling."""
    json: Path | None = None
    """Also write the results here."""
    runs: Path = Path("runs")
    """The folder of your runs."""


@dataclass(frozen=True)
class Import:
    """Convert an agent of another program into an agent file. Only tensors are read; no code in the file is run."""

    file: tyro.conf.Positional[str]
    """A Stable-Baselines3 zip, a state dict (.pth, .safetensors), a YAML layer table, or hub:owner/repo/file."""
    game: str = ""
    """The game that it plays. Default: the game in the YAML file."""
    output: Path | None = None
    """The agent file to write. Default: the file's name with .safetensors, in the current folder."""
    format: str = ""
    """sb3, cleanrl, ikostrikov or plain. Default: recognised from the file."""
    preprocessing: str = ""
    """The preprocessing that it was trained with: ale, baselines or async-rl. Default: that of its format or YAML
    file."""
    score: float | None = None
    """The score that its authors report, for its card."""
    notes: str = ""
    """Its origin, for its card."""


@dataclass(frozen=True)
class Pack:
    """Make a small agent file of a finished run to share: in half precision, with the learning curve on its card.

    The scores on its card are from games of the packed weights.
    """

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    output: Path | None = None
    """The agent file to write. Default: the game's name with .safetensors, in the current folder."""
    episodes: Annotated[int, Ge(2)] = 30
    """Games to play."""
    seed: Annotated[int, Ge(0)] = 0
    """Seed of the games and of the sampled actions; the final games of runs use 0."""
    notes: str = ""
    """How it was trained, for its card."""


Command = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Check, tyro.conf.subcommand("check")]
    | Annotated[Import, tyro.conf.subcommand("import")]
    | Annotated[Pack, tyro.conf.subcommand("pack")]
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
    elif isinstance(command, Check):
        _check(command)
    elif isinstance(command, Import):
        _import(command)
    else:
        _pack(command)
    return 0


def _list(command: List) -> None:
    from rich.table import Table

    from agents.teachers.store import list_teachers
    from envs.games import find_game
    from kfrl.cli.console import table_console
    from kfrl.compare.stats import REFERENCE_FRAMES, human_normalised

    table = Table("--teachers", "game", "net", "method", "steps", "mean score", "human-normalised", "protocol")
    table.columns[0].no_wrap, table.columns[0].overflow = True, "fold"
    for entry in list_teachers(command.runs):
        card, score = entry.card, entry.card.mean_score
        frames = int(card.protocol.get("max_frames", REFERENCE_FRAMES))
        normalised = None if score is None else human_normalised(score, card.game, frames)
        table.add_row(
            entry.reference,
            find_game(card.game).title,
            net_name(card.arch),
            card.method,
            f"{card.steps:,}",
            "not evaluated" if score is None else f"{score:,.1f}",
            "" if normalised is None else f"{normalised:.1%}",
            str(card.protocol.get("name", "")),
        )
    table_console().print(table)


def net_name(arch: dict[str, Any]) -> str:
    """A short name of an architecture: filters of its convolutions and units of its hidden layer, `16-32-256 LSTM`."""
    sizes = [filters for filters, *_ in arch.get("convs", ((16,), (32,)))]
    name = "-".join(str(size) for size in (*sizes, arch.get("hidden", 256)))
    columns = "".join(f" + {net_name(column['arch'])}" for column in arch.get("columns", ()))
    lstm = " LSTM" if arch.get("family") == "atari-lstm" else ""
    return f"{name} Q" if arch.get("head") == "q" else name + lstm + columns


def _show(command: Show) -> None:
    from dataclasses import asdict

    import yaml
    from rich.console import Console

    from agents.teachers.store import load_teacher
    from envs.atari import identify

    agent, _ = load_teacher(command.name, command.runs, identify)
    card = agent.card
    facts = {
        "file": str(agent.path),
        "sha256": agent.sha256,
        "game": card.game,
        "method": card.method,
        "agent steps": card.steps,
        "seed": card.seed,
        "teachers": list(card.teachers),
        "commit": card.commit,
        "notes": card.notes,
        "caveat": card.caveat,
        "actions": list(card.actions),
        "net": card.arch,
        "trained under": card.protocol,
        "trained on": {name: _plain(value) for name, value in asdict(card.preprocessing).items()},
        "evaluation": card.evaluation,
        "curve, agent steps and mean raw return": [list(point) for point in card.curve],
    }
    text = yaml.safe_dump(facts, sort_keys=False, default_flow_style=None, width=110)
    Console().print(text, highlight=False, soft_wrap=True, end="")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


OWN = "on its own pictures"
ALE_SCREENS = "on ale-py's pictures, as a student's teacher sees them"


def _check(command: Check) -> None:
    from rich.console import Console

    from agents.evaluation.play import policy_of
    from agents.teachers.store import load_teacher
    from envs.atari import action_set, identify
    from kfrl.cli.evaluate import dump_json, play_games, protocol_of
    from kfrl.config import checked
    from kfrl.runs.atomic import write_text

    command = checked(command)
    agent, _ = load_teacher(command.name, command.runs, identify)
    protocol = protocol_of(None, agent.card.game, agent.card.protocol)
    policy = policy_of(agent.net, agent.card.actions, action_set(protocol))
    own = agent.card.preprocessing
    views = {OWN: own} if own.luma is not None else {}
    views[ALE_SCREENS] = own.with_ale_screens()
    console = Console()
    played = {}
    for title, preprocessing in views.items():
        played[title] = play_games(
            policy,
            protocol,
            command.episodes,
            command.seed,
            command.greedy,
            f"{agent.name} {title}",
            console.print,
            preprocessing,
        )
    first, *_ = played.values()
    console.print(verdict(agent.card, first), highlight=False, soft_wrap=True)
    if command.json is not None:
        write_text(command.json, dump_json({title: result.to_dict() for title, result in played.items()}))
        console.print(f"Wrote {command.json}")


CHANCE = 0.01
"""Probability of reporting a difference for an agent whose card is right."""


def verdict(card: Card, result: Evaluation) -> str:
    """A sentence on whether the score on the card agrees with the games just played.

    If the card lists the score of each game, a permutation test compares the two samples; it is robust to one very
    bad game. Otherwise the card's score is compared with the interval of the games.
    """
    from scipy.stats import permutation_test

    from kfrl.compare.stats import mean

    score, found = card.mean_score, result.summary
    if score is None:
        return "Its card claims no score."
    claimed = card.scores
    if min(len(claimed), found.n) > 1:
        p = permutation_test(
            (result.scores, claimed),
            lambda ours, theirs, axis: mean(ours) - mean(theirs),
            n_resamples=99_999,
            batch=10_000,
            random_state=0,
        ).pvalue
        place = "more than chance" if p < CHANCE else "within chance"
        return (
            f"Its card claims {mean(claimed):,.1f}, over {len(claimed)} games. The mean of these games differs by "
            f"{found.mean - mean(claimed):+,.1f}, {place} (permutation test, p = {p:.3f} against {CHANCE:g})."
        )
    if found.ci_low is None or found.ci_high is None:
        games = "one game has" if found.n == 1 else "games with equal scores have"
        return f"Its card claims {score:,.1f}; {games} no interval to compare it with."
    place = "within" if found.ci_low <= score <= found.ci_high else "outside"
    return f"Its card claims {score:,.1f}: {place} the interval, {found.ci_low:,.1f} to {found.ci_high:,.1f}."


def _import(command: Import) -> None:
    from rich.console import Console

    from agents.teachers.formats import is_native, save_agent
    from agents.teachers.store import Reference, load_teacher
    from envs.atari import identify
    from envs.preprocessing import get_preprocessing

    asked = Reference.parse(command.file)
    if command.format:
        asked = replace(asked, kind=command.format)
    if command.game:
        asked = replace(asked, game=command.game)
    output = _new_file(command.output, Path(asked.place).stem)
    own = get_preprocessing(command.preprocessing) if command.preprocessing else None
    agent, _ = load_teacher(asked, Path(), identify)
    if is_native(agent.path):
        raise UserError(f"{agent.path} is already an agent file of kfrl: use it as it is.")
    card = replace(
        agent.card,
        preprocessing=own or agent.card.preprocessing,
        evaluation=agent.card.evaluation if command.score is None else {"mean": command.score},
        notes=command.notes or agent.card.notes,
    )
    save_agent(output, agent.net, card)
    Console().print(
        f"Wrote {output}: {card.game}, {len(card.actions)} actions, {card.method}, net {net_name(card.arch)}.\n"
        f"Check it: kfrl teachers check {output}",
        highlight=False,
        soft_wrap=True,
    )


def _pack(command: Pack) -> None:
    from rich.console import Console

    from agents.evaluation.play import policy_of
    from agents.teachers.formats import load_agent, read_card, save_agent
    from envs.atari import action_set
    from envs.games import Game
    from kfrl.cli.evaluate import play_games, protocol_of
    from kfrl.config import checked
    from kfrl.runs.folder import RunFolder
    from kfrl.runs.metrics import read_metrics

    command = checked(command)
    folder = RunFolder.of_run(command.run)
    folder.check_finished("kfrl train --resume")
    card = read_card(folder.student)
    output = _new_file(command.output, Game(card.game).file_name)
    rows = read_metrics(folder.metrics)
    points = ((row["global_step"], row.get("eval/mean_return")) for row in rows)
    curve = tuple((int(step), score) for step, score in points if score is not None)
    console = Console()
    protocol = protocol_of(None, card.game, card.protocol)
    with TemporaryDirectory() as place:
        packed = Path(place) / output.name
        save_agent(packed, load_agent(folder.student).net, card, half=True)
        net = load_agent(packed).net
    policy = policy_of(net, card.actions, action_set(protocol))
    result = play_games(policy, protocol, command.episodes, command.seed, False, "in half precision", console.print)
    console.print(verdict(card, result), highlight=False, soft_wrap=True)
    shared = replace(card, evaluation=result.to_dict(), curve=curve, notes=command.notes or card.notes)
    save_agent(output, net, shared, half=True)
    console.print(f"Wrote {output}, {output.stat().st_size / 1e6:.1f} MB.", highlight=False, soft_wrap=True)


def _new_file(asked: Path | None, stem: str) -> Path:
    output = asked or Path(f"{stem}.safetensors")
    if output.exists():
        raise UserError(f"{output} exists. Give another --output.")
    if output.suffix != ".safetensors":
        raise UserError(f"An agent file ends in .safetensors, got {output.name!r}.")
    return output
