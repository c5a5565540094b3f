"""What `kfrl train` shows of a run."""

from __future__ import annotations

from collections.abc import Iterator

from agents.config import FAST_ENVS, TrainConfig, cores
from agents.runs import Run
from agents.training import Status
from kfrl.checkpoint import Checkpoint
from kfrl.cli.display import RunDisplay, View, duration, link_table, p_of
from kfrl.flow import KnowledgeFlow


def introduce(display: RunDisplay, run: Run, checkpoint: Checkpoint | None) -> None:
    """Say what is about to run: rules, sizes, teachers and links."""
    config, protocol = run.config, run.protocol
    names = ", ".join(_teacher_line(run, index) for index in range(len(run.teachers)))
    display.title = f"{config.game} · {config.label}" + (f" · {names}" if names else "")
    display.say(f"[bold]{display.title}[/]")
    display.say(
        f"protocol {protocol.name} ({protocol.fingerprint}): sticky {protocol.sticky:g}, frame skip "
        f"{protocol.frame_skip}, {len(run.spec.actions)} actions, a lost life "
        f"{'ends' if protocol.episodic_life else 'does not end'} the learner's episode"
    )
    for line in _engine_lines(config):
        display.say(line)
    net = run.method().build(run.spec, run.teachers)
    if isinstance(net, KnowledgeFlow):
        display.say(link_table(net))
    if checkpoint is not None:
        display.say(f"Going on from step {checkpoint.state['global_step']:,} ({checkpoint.path.name}).")
    display.say(f"Writing to {run.folder.path}")


def _engine_lines(config: TrainConfig) -> Iterator[str]:
    shape = config.shape
    if config.algo == "a3c":
        who = f"{shape.workers} worker{'s' * (shape.workers > 1)} x {shape.envs_per_worker} games on {cores()} cores"
    else:
        who = f"{config.algo} with {shape.envs_per_worker} games in step, learning on {config.device}"
    yield f"{config.steps:,} agent steps, {who}, t_max {shape.t_max}, learning rate {shape.lr:.3g}"
    if shape.workers > cores():
        yield (
            f"[yellow]{shape.workers} workers with one thread each share {cores()} cores: "
            f"{shape.workers / cores():.0f} wait for every one that runs. That is the published shape; --preset fast "
            f"({cores()} workers x {FAST_ENVS} games) makes more steps a second here.[/]"
        )


def _teacher_line(run: Run, index: int) -> str:
    teacher = run.teachers[index]
    score = teacher.card.mean_score
    return f"teacher {teacher.name}" + ("" if score is None else f" ({score:.0f} points)")


def view(status: Status) -> View:
    """What of a status is shown."""
    facts = [
        ("steps", f"{status.step:,} of {status.steps:,}"),
        ("rate", f"{status.steps_per_sec:,.0f} steps/s"),
        ("ETA", duration(status.eta_sec)),
        ("raw return", _score(status.recent_return)),
    ]
    if status.student_return is not None:
        facts.append(("student alone", _score(status.student_return)))
    if status.dropped:
        facts.append(("dropped updates", f"{status.dropped:,}"))
    return View(status.step, status.steps, facts, p_of(status.metrics))


def _score(value: float | None) -> str:
    return "..." if value is None else f"{value:,.1f}"
