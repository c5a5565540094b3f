"""The texts that `kfrl train` prints about a run."""

from __future__ import annotations

from collections.abc import Iterator

from agents.config import FAST_ENVS, TrainConfig
from agents.plan import Plan, expected_memory, expected_rate, plan_of
from agents.run import Run
from agents.trainer import GameStatus
from envs.games import Game
from kfrl.cli.display import RunDisplay, View, duration, link_table, p_of
from kfrl.flow import KnowledgeFlow
from kfrl.machine import cores, size, total_memory, warnings
from kfrl.nets import state_size
from kfrl.nets.carried import carried
from kfrl.runs.checkpoint import Checkpoint


def introduce(display: RunDisplay, run: Run) -> Plan:
    """Print the run's rules, sizes, teachers, weights and links, and warnings about this machine."""
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
    plan = plan_of(run)
    deployed = "" if plan.deployed is None else f", {plan.deployed:,} are deployed"
    phase = "" if plan.deployed is not None else " in phase 1"
    display.say(f"{plan.trained:,} parameters train{phase}{deployed}")
    if state_size(plan.net):
        display.say(
            f"recurrent: {state_size(plan.net):,} numbers of state a game, zero at the start of an episode; the "
            f"gradient goes back through a rollout of {config.shape.t_max} steps"
        )
    for line in _loaded_lines(run, plan):
        display.say(line)
    for flow in plan.net.modules():
        if isinstance(flow, KnowledgeFlow):
            display.say(link_table(flow))
    for note in plan.method.notes(plan.net):
        display.say(note)
    for warning in warnings(run.folder.path, shared=plan.shared, written=plan.written):
        display.say(f"Warning: {warning}", "yellow")
    return plan


def say_where(display: RunDisplay, run: Run, checkpoint: Checkpoint | None) -> None:
    """Print the checkpoint that the run continues from and the folder that it writes to."""
    if checkpoint is not None:
        state = checkpoint.state
        phase = f" of phase {state['phase'] + 1}" if len(run.phases) > 1 else ""
        step = state.get("phase_step", state["global_step"])
        display.say(f"Continuing from step {step:,}{phase} ({checkpoint.path.name}).")
    display.say(f"Writing to {run.folder.path}")


def foretell(display: RunDisplay, run: Run, plan: Plan) -> None:
    """Print the estimated memory, disk and time of a run, and that nothing was written."""
    rate = expected_rate(run, plan)
    memory, have = expected_memory(run, plan), total_memory()
    of = "" if have is None else f" of this machine's {size(have)}"
    first = f" in phase 1 of {len(run.phases)}" if len(run.phases) > 1 else ""
    display.say(f"memory: about {size(memory)}{of}; {size(plan.shared)} of it shared between processes")
    display.say(f"disk: about {size(plan.written)}")
    display.say(
        f"rate: about {rate:,.0f} steps a second{first}, measured now on one learner; {run.config.steps:,} steps take "
        f"{duration(run.config.steps / rate)} at that rate, beside the games played for curves and scores"
    )
    if have is not None and memory > have:
        display.say(
            "Warning: that is more memory than there is. Use fewer --workers or a smaller replay memory.", "yellow"
        )
    display.say(f"Nothing was written. The folder would be {run.folder.path}")


def _loaded_lines(run: Run, plan: Plan) -> Iterator[str]:
    """How weights of another program or of another net were loaded, a line each."""
    for teacher in run.teachers:
        if teacher.loaded:
            yield f"teacher {teacher.name}, {teacher.path.name}:"
            yield from (f"  {line}" for line in teacher.loaded)
    taken = carried(plan.net, {teacher.name: teacher.net for teacher in run.teachers})
    if taken:
        yield "student:"
        yield from (f"  {one}" for one in taken)


def _engine_lines(config: TrainConfig) -> Iterator[str]:
    shape = config.shape
    if config.algo == "a3c":
        workers = "1 worker" if shape.workers == 1 else f"{shape.workers} workers"
        who = f"{workers} x {shape.envs_per_worker} games on {cores()} cores"
    else:
        who = f"{config.algo} with {shape.envs_per_worker} games in step, learning on {config.device}"
    yield f"{config.steps:,} agent steps, {who}, t_max {shape.t_max}, learning rate {shape.lr:.3g}"
    if shape.workers > cores():
        yield (
            f"{shape.workers} workers with one thread each share {cores()} cores: "
            f"{shape.workers / cores():.0f} workers share a core. That is the published shape; --preset fast "
            f"({cores()} workers x {FAST_ENVS} games) makes more steps a second here."
        )


def _phase_lines(run: Run) -> Iterator[str]:
    """The games and the steps of each phase, for a run with source games."""
    if not run.spec.sources:
        return
    for index, phase in enumerate(run.phases):
        games = ", ".join(f"{Game(task.game).title} ({len(task.actions)} actions)" for task in phase.games)
        yield f"phase {index + 1}: {games}, {phase.steps:,} steps"


def _teacher_line(run: Run, index: int) -> str:
    teacher = run.teachers[index]
    score = teacher.card.mean_score
    return f"teacher {teacher.name}" + ("" if score is None else f" ({score:.0f} points)")


def view(status: GameStatus) -> View:
    """The parts of a status that are shown."""
    facts = [("phase", status.part)] if status.part else []
    facts += [
        ("steps", f"{status.done:,} of {status.total:,}"),
        ("rate", f"{status.rate:,.0f} steps/s"),
        ("ETA", duration(status.eta_sec)),
        ("raw return", _score(status.recent_return)),
    ]
    facts += [(f"in {Game(game).title}", _score(score)) for game, score in status.source_returns.items()]
    if status.student is not None:
        facts.append(("student alone", _score(status.student)))
    if status.dropped:
        facts.append(("dropped updates", f"{status.dropped:,}"))
    return View(status.done, status.total, facts, p_of(status.metrics))


def _score(value: float | None) -> str:
    return "..." if value is None else f"{value:,.1f}"
