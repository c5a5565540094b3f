"""What `kfrl train` shows of a run."""

from __future__ import annotations

from collections.abc import Iterator

from agents.config import FAST_ENVS, TrainConfig, cores
from agents.run import Run
from agents.trainer import Status
from envs.games import Game
from kfrl.cli.display import RunDisplay, View, duration, link_table, p_of
from kfrl.flow import KnowledgeFlow
from kfrl.runs.checkpoint import Checkpoint


def introduce(display: RunDisplay, run: Run, checkpoint: Checkpoint | None) -> None:
    """Say what is about to run: rules, sizes, teachers and links."""
    config, protocol = run.config, run.protocol
    names = ", ".join(
        [_teacher_line(run, index) for index in range(len(run.teachers))]
        + [f"source {Game(source.game).title}" for source in run.spec.sources]
    )
    display.title = f"{config.game} · {config.label}" + (f" · {names}" if names else "")
    display.say(display.title, "bold")
    display.say(
        f"protocol {protocol.name} ({protocol.fingerprint}): sticky {protocol.sticky:g}, frame skip "
        f"{protocol.frame_skip}, {len(run.spec.actions)} actions, a lost life "
        f"{'ends' if protocol.episodic_life else 'does not end'} the learner's episode"
    )
    for line in (*_engine_lines(config), *_phase_lines(run)):
        display.say(line)
    method = run.method()
    net = method.build(run.spec, run.teachers)
    method.begin(net, 0, run.phases[0].games[0], rank=0)
    trained = sum(p.numel() for group in method.parameter_groups(net) for p in group.parameters)
    if len(run.phases) == 1:
        deployed = sum(p.numel() for p in method.export(net).parameters())
        display.say(f"{trained:,} parameters train, {deployed:,} are deployed")
    else:
        display.say(f"{trained:,} parameters train in phase 1")
    for flow in net.modules():
        if isinstance(flow, KnowledgeFlow):
            display.say(link_table(flow))
    for note in method.notes(net):
        display.say(note)
    if checkpoint is not None:
        state = checkpoint.state
        phase = f" of phase {state['phase'] + 1}" if len(run.phases) > 1 else ""
        step = state.get("phase_step", state["global_step"])
        display.say(f"Going on from step {step:,}{phase} ({checkpoint.path.name}).")
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
            f"{shape.workers} workers with one thread each share {cores()} cores: "
            f"{shape.workers / cores():.0f} wait for every one that runs. That is the published shape; --preset fast "
            f"({cores()} workers x {FAST_ENVS} games) makes more steps a second here."
        )


def _phase_lines(run: Run) -> Iterator[str]:
    """What is learned when, where that is not one game from start to end."""
    if not run.spec.sources:
        return
    for index, phase in enumerate(run.phases):
        games = ", ".join(f"{Game(task.game).title} ({len(task.actions)} actions)" for task in phase.games)
        yield f"phase {index + 1}: {games}, {phase.steps:,} steps"


def _teacher_line(run: Run, index: int) -> str:
    teacher = run.teachers[index]
    score = teacher.card.mean_score
    return f"teacher {teacher.name}" + ("" if score is None else f" ({score:.0f} points)")


def view(status: Status) -> View:
    """What of a status is shown."""
    facts = [("phase", status.phase)] if status.phase else []
    facts += [
        ("steps", f"{status.step:,} of {status.steps:,}"),
        ("rate", f"{status.steps_per_sec:,.0f} steps/s"),
        ("ETA", duration(status.eta_sec)),
        ("raw return", _score(status.recent_return)),
    ]
    facts += [(f"in {Game(game).title}", _score(score)) for game, score in status.source_returns.items()]
    if status.student_return is not None:
        facts.append(("student alone", _score(status.student_return)))
    if status.dropped:
        facts.append(("dropped updates", f"{status.dropped:,}"))
    return View(status.step, status.steps, facts, p_of(status.metrics))


def _score(value: float | None) -> str:
    return "..." if value is None else f"{value:,.1f}"
