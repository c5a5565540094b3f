"""`kfrl eval`: the score of a run, an agent file or a teacher under its protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from annotated_types import Ge

if TYPE_CHECKING:
    from rich.console import RenderableType

    from agents.config import TrainConfig
    from agents.evaluation.play import Evaluation
    from agents.policies import Policy
    from envs.preprocessing import Preprocessing
    from envs.protocols import Protocol

Say = Callable[["RenderableType"], None]


@dataclass(frozen=True)
class EvalFlags:
    """Score an agent: 30 games from no-op starts, raw scores, the student alone."""

    agent: tyro.conf.Positional[str]
    """A run's folder, or anything else that `--teachers` accepts."""
    episodes: Annotated[int, Ge(1)] = 30
    """Games to play."""
    seed: Annotated[int, Ge(0)] = 0
    """Seed of the games and of the sampled actions."""
    greedy: bool = False
    """Take the most probable action instead of sampling."""
    protocol: str | None = None
    """paper, nature, machado or sb3. Default: the rules that the agent was trained under."""
    flavours: str = ""
    """Other flavours of the game to play too, comma-separated: m1d0,m2d0; or `all` flavours of its ROM."""
    json: Path | None = None
    """Also write the result here."""
    video: Path | None = None
    """Also write a video of one more game: .mp4 or .gif."""
    runs: Path = Path("runs")
    """The folder of your runs."""


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    from kfrl.config import checked

    flags = checked(tyro.cli(EvalFlags, prog="kfrl eval", args=list(argv)))
    from rich.console import Console

    from agents.evaluation.play import check_video_path, policy_of, record
    from agents.teachers.store import load_teacher
    from envs.atari import action_set, identify
    from envs.preprocessing import ALE
    from kfrl.runs.atomic import write_text

    if flags.video is not None:
        check_video_path(flags.video)
    console = Console()
    agent, _ = load_teacher(flags.agent, flags.runs, identify)
    protocol = protocol_of(flags.protocol, agent.card.game, agent.card.protocol)
    others = _flavours(protocol, flags.flavours)
    alone = policy_of(agent.net, agent.card.actions, action_set(protocol))
    student = _student_of_run(Path(flags.agent), agent.card.steps)
    for line in (_other_rules(agent.card.protocol, protocol), agent.card.caveat, *student.remarks):
        if line:
            console.print(line, highlight=False, markup=False)

    def play(policy: Policy, title: str, rules: Protocol = protocol) -> Evaluation:
        return play_games(policy, rules, flags.episodes, flags.seed, flags.greedy, title, console.print)

    result = play(alone, f"{agent.name} alone")
    if agent.card.preprocessing != ALE:
        console.print(f"It was trained on other pictures; what it scores on these: kfrl teachers check {flags.agent}")
    answer: dict[str, Any] = {
        "agent": str(agent.path),
        "sha256": agent.sha256,
        "teacher_sha256": list(agent.card.teacher_sha256),
        "method": agent.card.method,
        "steps": agent.card.steps,
        "commit": agent.card.commit,
        "trained_under": agent.card.protocol,
        "caveat": agent.card.caveat,
        **result.to_dict(),
    }
    if student.linked is not None:
        answer["with_links"] = play(student.linked, "with its teachers' links").to_dict()
    elif agent.card.teachers and student.independent:
        numbers = sum(tensor.numel() for tensor in agent.net.state_dict().values())
        console.print(f"It needs no teacher: the {numbers:,} numbers in its file are the whole net.")
    answer |= _in_flavours(result, [play(alone, "alone", rules) for rules in others], console.print)
    if flags.json is not None:
        write_text(flags.json, dump_json(answer))
        console.print(f"Wrote {flags.json}")
    if flags.video is not None:
        score = record(alone, protocol, flags.video, seed=flags.seed, greedy=flags.greedy)
        console.print(f"Wrote {flags.video}: a game of {score:,.0f} points")
    return 0


def _flavours(protocol: Protocol, wanted: str) -> list[Protocol]:
    """The protocol in each other flavour that `--flavours` names; the agent's own flavour is played in any case.

    Raises:
        UserError: the ROM has no such flavour.
    """
    from dataclasses import replace

    from envs.games import Game, flavours_of, in_flavour

    game = Game(protocol.game)
    named = map(str, flavours_of(game.rom)) if wanted == "all" else filter(None, wanted.split(","))
    names = dict.fromkeys(in_flavour(game, flavour).name for flavour in named)
    return [replace(protocol, game=name) for name in names if name != protocol.game]


def _in_flavours(own: Evaluation, others: Sequence[Evaluation], say: Say) -> dict[str, Any]:
    """Print an agent's scores by flavour and return them for the JSON file; empty if it played only its own flavour."""
    from rich.table import Table

    from envs.games import Game

    if not others:
        return {}
    games = {str(Game(each.protocol.game).flavour_in_force): each for each in (own, *others)}
    table = Table("flavour", title=f"{Game(Game(own.protocol.game).rom).title}, the agent's own flavour first")
    for title in ("mean", "95 % interval", "lowest", "highest"):
        table.add_column(title, justify="right")
    for flavour, each in games.items():
        found = each.summary
        interval = "" if found.ci_low is None else f"{found.ci_low:,.1f} to {found.ci_high:,.1f}"
        table.add_row(flavour, f"{found.mean:,.1f}", interval, f"{found.min:,.0f}", f"{found.max:,.0f}")
    say(table)
    return {"flavours": {flavour: each.to_dict() for flavour, each in games.items()}}


def _other_rules(trained: dict[str, Any], protocol: Protocol) -> str:
    """A note if the agent was trained under other rules than it plays now; else empty."""
    if not trained or trained.get("fingerprint") == protocol.fingerprint:
        return ""
    return (
        f"It learned under other rules: {trained.get('name')} ({trained.get('fingerprint')}); these are "
        f"{protocol.name} ({protocol.fingerprint})."
    )


def dump_json(answer: dict[str, Any]) -> str:
    """Indented JSON with a line break at the end."""
    import json

    return json.dumps(answer, indent=1) + "\n"


def play_games(
    policy: Policy,
    protocol: Protocol,
    episodes: int,
    seed: int,
    greedy: bool,
    title: str,
    say: Say,
    preprocessing: Preprocessing | None = None,
) -> Evaluation:
    """Play with a progress bar and print the table of scores; the default preprocessing is ale-py's."""
    import os

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from agents.evaluation.play import evaluate
    from envs.preprocessing import ALE

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("games"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"Playing {protocol.game}, {title}", total=episodes)
        result = evaluate(
            policy,
            protocol,
            preprocessing=preprocessing or ALE,
            episodes=episodes,
            seed=seed,
            greedy=greedy,
            num_threads=os.cpu_count() or 1,
            on_episode=lambda episode: progress.advance(task),
        )
    say(result.table(title))
    return result


def protocol_of(name: str | None, game: str, saved: dict[str, Any]) -> Protocol:
    """The preset `name`; without a name the protocol saved in an agent's card, or else the paper's."""
    from envs.protocols import Protocol, get_protocol

    if name is not None or not saved:
        return get_protocol(name or "paper", game)
    return Protocol.from_dict(saved)


@dataclass(frozen=True)
class _Student:
    """Facts about a student that are in its run's folder and not in the agent file.

    Attributes:
        linked: the policy with the links that it still depends on; None if there are none.
        independent: whether it is known to need no teacher.
        remarks: sentences for the reader, printed before the games.
    """

    linked: Policy | None = None
    independent: bool = True
    remarks: tuple[str, ...] = ()


def _student_of_run(path: Path, steps: int) -> _Student:
    """The facts about the student of the run at `path`; the defaults if `path` is not a run's folder."""
    from kfrl.errors import UserError

    remarks = []
    try:
        settings = _settings(path)
        if settings is None:
            return _Student()
        remarks.append(_half_trained(settings, steps))
        linked = _with_links(path, settings)
        return _Student(linked, independent=linked is None, remarks=tuple(remarks))
    except UserError as error:
        remarks.append(f"Its score with its teachers' links is left out: {error}")
        return _Student(independent=False, remarks=tuple(remarks))


def _settings(path: Path) -> TrainConfig | None:
    """The settings of a run; None if `path` is not a run's folder."""
    from agents.config import TrainConfig
    from kfrl.config import load_config
    from kfrl.runs.folder import RunFolder

    config = RunFolder(path).config
    return load_config(config, TrainConfig) if config.is_file() else None


def _half_trained(settings: TrainConfig, steps: int) -> str:
    """A note on a student after only `steps` of its run; empty if the run is complete."""
    return f"It is half-trained: {steps:,} of {settings.steps:,} steps." if steps < settings.steps else ""


def _with_links(path: Path, settings: TrainConfig) -> Policy | None:
    """The policy of a run with the links that it still depends on; None if there are none.

    Raises:
        UserError: the teachers or the checkpoint are missing. The student plays without them.
    """
    from agents.launch import linked_policy
    from agents.methods import get_method
    from agents.run import reopen
    from kfrl.runs.checkpoint import latest_checkpoint

    if not get_method(settings.method_name).leans_on_teachers:
        return None
    run = reopen(path)
    built = run.take_built()
    method, net = built.method, built.net
    saved = latest_checkpoint(run.folder.checkpoints)
    run.check_inputs(saved)
    saved.load_net(net)
    method.begin(net, saved.state.get("phase", 0), run.spec, rank=0)
    method.schedule(net, min(1.0, saved.state["global_step"] / run.config.steps))
    return linked_policy(run, net)
