"""A run on a game: a resolved config, and the folder that it writes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from agents.answers import Answers, check_answerers, open_all
from agents.config import RECURRENT_ALGOS, TrainConfig
from agents.methods import get_method, method_names
from agents.methods.base import AnyMethod, NetSpec, Phase
from agents.teachers.formats import Card, Teacher, save_agent
from agents.teachers.store import load_teachers
from envs.atari import action_set, identify
from envs.games import Game, find_game
from envs.protocols import Protocol, get_protocol
from kfrl.config import read_yaml
from kfrl.devices import check_device
from kfrl.errors import UserError
from kfrl.machine import allow_open_files
from kfrl.nets import arch_of, state_size
from kfrl.optim.kfac import COLD_UPDATES, KroneckerFactors, Layer, factored_layers
from kfrl.registry import exact_method
from kfrl.runs.checkpoint import Checkpoint
from kfrl.runs.folder import RUNS, RunFolder
from kfrl.runs.loggers import check_loggers
from kfrl.runs.provenance import check_pinned, commit
from kfrl.seeding import EVALUATION, stream
from kfrl.training.method import check_settings, written_settings
from kfrl.training.run import MethodRun


@dataclass(frozen=True)
class Run(MethodRun[AnyMethod]):
    """A run on a game: a config with everything that it names looked up and loaded. Nothing is written yet."""

    config: TrainConfig
    protocol: Protocol
    spec: NetSpec
    teachers: tuple[Teacher, ...]
    folder: RunFolder

    def method(self) -> AnyMethod:
        """A new instance of the run's method."""
        return get_method(self.config.method_name)(self.config)

    def build(self, method: AnyMethod) -> nn.Module:
        """Build a new net to train."""
        net: nn.Module = method.build(self.spec, self.teachers)
        return net

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.config.seed

    def check_inputs(self, checkpoint: Checkpoint) -> None:
        """Refuse a checkpoint that was trained with other teacher files or other stored answers.

        Raises:
            UserError: the message names the file and both checksums.
        """
        config, state, who = self.config, checkpoint.state, f"checkpoint {checkpoint.path.name}"
        paths = [teacher.path for teacher in self.teachers]
        check_pinned(paths, config.teacher_sha256, state.get("teacher_sha256", ()), who)
        stored = state.get("answers_sha256", ())
        check_pinned(config.answer_files, config.answers_sha256, stored, who, kind="answers")

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases of the run in order; the last phase has the run's own game."""
        return self.method().phases(self.spec, self.teachers)

    @property
    def final_seed(self) -> int:
        """Seed of the final games. It depends on the run's seed, so an interval over seeds covers the games' starts."""
        return stream(self.config.seed, EVALUATION)

    def rules(self, task: NetSpec) -> Protocol:
        """The protocol for one game of this run; the rules are the same for all."""
        return replace(self.protocol, game=task.game)

    def card(self, steps: int, net: nn.Module, evaluation: dict[str, Any] | None = None, caveat: str = "") -> Card:
        """The card for the student's file."""
        return Card(
            game=self.protocol.game,
            actions=self.spec.actions,
            arch=arch_of(net),
            method=self.config.label,
            steps=steps,
            seed=self.config.seed,
            teachers=tuple(teacher.name for teacher in self.teachers),
            teacher_sha256=self.config.teacher_sha256,
            protocol=self.protocol.to_dict(),
            evaluation=evaluation or {},
            trains_value=get_method(self.config.method_name).trains_value,
            commit=commit(),
            caveat=caveat,
        )

    def save_student(
        self, net: nn.Module, steps: int, evaluation: dict[str, Any] | None = None, caveat: str = ""
    ) -> None:
        """Write the student alone as an agent file."""
        save_agent(self.folder.student, net, self.card(steps, net, evaluation, caveat))


def resolve(config: TrainConfig) -> Run:
    """Look up the game, the protocol, the method, the source games and the teachers of a new run.

    Raises:
        UserError: one of them does not exist, they do not fit together, or a setting of the method has no effect.
            Nothing has been written.
    """
    run = _resolve(config)
    run.built().method.check_used()
    return run


def _resolve(config: TrainConfig) -> Run:
    if not config.game:
        raise UserError("No game is given. Give --game NAME, e.g. --game Alien; `kfrl games` lists them.")
    workers_by_default = config.workers is None
    game = find_game(config.game)
    protocol = get_protocol(config.protocol, game.name)
    method = get_method(config.method_name)
    method.check_answers(config.method_name, len(config.answer_files))
    files = open_all(config.answer_files)
    instead = bool(files) and method.takes_answers == "instead"
    asked = sum(len(file.card.teachers) for file in files) if instead else len(config.teacher_names)
    method.check_teachers(config.method_name, asked)
    method.check_sources(config.method_name, len(config.source_names), config.source_steps)
    method.check_algo(config.method_name, config.algo)
    method.check_init(config.method_name, config.init)
    if config.net == "lstm" and not method.carries_state():
        raise _stateless(f"Method {config.method_name} runs its nets on single observations")
    method.check_unused(config.method_name, config)
    _check_engine(config)
    check_loggers(config.log_to)
    teachers, exact = _answerers(config, files) if instead else load_teachers(config.teacher_names, RUNS, identify)
    if files:
        check_answerers(files, teachers)
    checksums = tuple(teacher.sha256 for teacher in teachers)
    check_pinned([teacher.path for teacher in teachers], checksums, config.teacher_sha256)
    answers_checksums = tuple(file.sha256 for file in files)
    check_pinned([file.path for file in files], answers_checksums, config.answers_sha256, kind="answers")
    _check_recurrent_teachers(config, method, teachers)
    sources = _source_games(config, method, game, teachers)
    check_settings(config, method_names(), get_method)
    config = replace(
        config.with_shape(),
        game=game.title,
        teachers=",".join(exact),
        teacher_sha256=checksums,
        answers=",".join(str(file.path.absolute()) for file in files),
        answers_sha256=answers_checksums,
        source_games=",".join(Game(name).title for name in sources) if config.source_names else "",
        source_steps=config.source_steps or config.steps if method.takes_sources.endswith("before") else None,
        method=exact_method(config.method_name),
        methods=method.resolve_settings(config, method_names()),
    )
    folder = RunFolder(config.run_dir or _default_folder(config, game, teachers))
    config = replace(config, run_dir=folder.path)
    specs = [NetSpec(name, action_set(replace(protocol, game=name))) for name in sources]
    spec = NetSpec(game.name, action_set(protocol), tuple(specs))
    run = Run(config, protocol, spec, teachers, folder)
    if workers_by_default and config.algo == "a3c":
        run = replace(run, config=replace(config, workers=max(config.shape.workers, _games_at_once(run))))
    _check_workers(run)
    try:
        run.built()
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"The student (convs {config.convs}, hidden {config.hidden}) and its teachers cannot be combined on "
            f"{protocol.frame_stack} x {protocol.screen_size} x {protocol.screen_size} screens: {error}"
        ) from None
    _check_state(run)
    if config.algo == "acktr":
        _check_factors(run)
    return run


def _stateless(why: str) -> UserError:
    """The refusal of a recurrent net, which names the methods that can train one."""
    able = ", ".join(name for name in method_names() if get_method(name).carries_state())
    return UserError(
        f"{why}, and the state of an LSTM needs their order. Use --net feed-forward, or one of these methods: {able}."
    )


def _check_recurrent_teachers(config: TrainConfig, method: type[AnyMethod], teachers: Sequence[Teacher]) -> None:
    """Refuse teachers with a state for a method that reads their answers to single observations."""
    recurrent = [teacher.name for teacher in teachers if state_size(teacher.net)]
    if recurrent and not method.takes_recurrent_teachers:
        able = ", ".join(name for name in method_names() if get_method(name).takes_recurrent_teachers)
        raise UserError(
            f"Teacher {recurrent[0]} has an LSTM, whose answers depend on earlier observations, and method "
            f"{config.method_name} asks it about single ones. Use a feed-forward teacher, or a method that copies it "
            f"or reads only its convolutions and its fully connected layer: {able}."
        )


def _check_state(run: Run) -> None:
    """Refuse a recurrent net under an algorithm that does not keep samples in order, and a method without `--net`."""
    config, recurrent = run.config, state_size(run.built().net)
    if config.net == "lstm" and not recurrent:
        raise _stateless(f"Method {config.method_name} builds its own net, for single observations")
    size, t_max = config.ppo.batch_size, config.shape.t_max
    if recurrent and config.algo == "ppo" and size % t_max:
        fitting = _nearest_sizes(config.shape.envs_per_worker * t_max, size, multiple_of=t_max)
        raise UserError(
            f"--batch-size {size} is no multiple of the {t_max} steps of a game's rollout, and --algo ppo learns an "
            f"LSTM from whole ones. The nearest sizes that are, and that divide all games' samples: {fitting}."
        )
    if recurrent and config.algo not in RECURRENT_ALGOS:
        raise UserError(
            f"--algo {config.algo} learns from single observations, and the state of an LSTM needs their order. Use "
            f"--algo {' or '.join(RECURRENT_ALGOS)}, or a feed-forward net."
        )


def _answerers(config: TrainConfig, files: Sequence[Answers]) -> tuple[tuple[Teacher, ...], tuple[str, ...]]:
    """The teachers whose answers are stored, without their nets. If teachers are named, they must be the same."""
    exact = tuple(each.reference for file in files for each in file.card.teachers)
    if config.teacher_names not in ((), exact):
        check_answerers(files, load_teachers(config.teacher_names, RUNS, identify)[0])
    return tuple(teacher for file in files for teacher in file.absent()), exact


def _source_games(
    config: TrainConfig, method: type[AnyMethod], game: Game, teachers: Sequence[Teacher]
) -> tuple[str, ...]:
    """The names of the run's source games, in the order given."""
    if method.takes_sources.startswith("teachers"):
        beside = method.takes_sources.endswith("beside")
        played = dict.fromkeys(teacher.card.game for teacher in teachers)
        return tuple(name for name in played if not (beside and name == game.name))
    names = [find_game(name).name for name in config.source_names]
    for index, name in enumerate(names):
        if name in (game.name, *names[:index]):
            why = "the run's own game" if name == game.name else "given twice"
            raise UserError(f"--source-games {config.source_games}: {Game(name).title} is {why}. Name other games.")
    return tuple(names)


def _games_at_once(run: Run) -> int:
    return max(len(phase.games) for phase in run.phases)


def _check_workers(run: Run) -> None:
    """Refuse fewer workers than games that are learned at the same time, and more workers than open files allow."""
    config, shape = run.config, run.config.shape
    if config.algo == "a3c":
        allow_open_files(80 + 8 * shape.workers, "give fewer --workers, or --algo a2c")
    most = _games_at_once(run)
    if config.algo != "a3c" and run.method().games_in_turn:
        _check_games_in_turn(config, most)
    elif shape.workers < most:
        raise UserError(
            f"Method {config.method_name} learns {most} games at the same time here, each on its own worker: give "
            f"--algo a3c --workers {most} or more, got {config.algo} with {shape.workers}."
        )


def _check_games_in_turn(config: TrainConfig, games: int) -> None:
    """Refuse a number of environments that the games do not divide, and minibatches that do not divide a rollout."""
    envs, t_max = config.shape.envs_per_worker, config.shape.t_max
    if envs % games:
        raise UserError(
            f"--algo {config.algo} divides its --envs-per-worker over {games} games, got {envs}. Give a multiple of "
            f"{games}, e.g. {-(-envs // games) * games}."
        )
    samples = envs // games * t_max
    if config.algo == "ppo" and samples % config.ppo.batch_size:
        raise UserError(
            f"--batch-size {config.ppo.batch_size} does not divide a rollout of one of {games} games: {envs // games} "
            f"environments x {t_max} steps = {samples:,} samples. Give a divisor, e.g. {samples}."
        )


def _check_factors(run: Run) -> None:
    """For K-FAC: refuse layers that it cannot factor and rollouts that are too small for its factors, in any phase."""
    for index, phase in enumerate(run.phases):
        # An imitation uses Adam on every engine.
        if not phase.imitates:
            layers = layers_to_factor(run, index)
            _check_samples(layers, run, run.config.shape.envs_per_worker, phase.t_max or run.config.shape.t_max)


def layers_to_factor(run: Run, index: int) -> dict[str, Layer]:
    """The layers that K-FAC factors in a phase.

    Raises:
        UserError: a layer cannot be factored, runs twice in a pass, or affects the output without running as a module.
    """
    method = run.method()
    # A net of its own, because the start of a phase changes it.
    with torch.random.fork_rng(devices=[]):
        net = run.build(method)
    method.begin(net, index, run.phases[index].games[0], rank=0)
    trained = [p for group in method.parameter_groups(net) if group.sgd is None for p in group.parameters]
    layers = factored_layers(net, trained)
    stack, size = run.protocol.frame_stack, run.protocol.screen_size
    screen = torch.zeros(1, stack, size, size, dtype=torch.uint8)
    with torch.no_grad():
        context = method.features(net, screen)
    factors = KroneckerFactors(layers, {})
    with torch.enable_grad(), factors.recording():
        output = method.forward(net, screen, context)
    bypassed = factors.bypassed(output.logits.sum() + output.values.sum())
    if bypassed:
        raise UserError(
            f"--algo acktr cannot factor {bypassed[0]}"
            + (f" and {len(bypassed) - 1} more layers" if len(bypassed) > 1 else "")
            + f": method {run.config.method_name} uses the weights without running the layer as a module, and K-FAC "
            "reads a module's inputs and outputs. Use --algo a2c."
        )
    return layers


def _check_samples(layers: dict[str, Layer], run: Run, envs: int, t_max: int) -> None:
    """Refuse a rollout with too few samples for the outputs of the widest layer."""
    widest = max(layers, key=lambda name: len(layers[name].weight))
    units, least = len(layers[widest].weight), -(-len(layers[widest].weight) // COLD_UPDATES)
    limits = {
        f"A rollout of {envs} games x {t_max} steps": (envs * t_max, "Give more --envs-per-worker or --t-max."),
        "--fisher-samples": (run.config.acktr.fisher_samples, f"Give --fisher-samples {least} or more."),
    }
    for what, (samples, advice) in limits.items():
        if samples < least:
            raise UserError(
                f"{what} gives --algo acktr {samples} samples for its factors; the {units} outputs of {widest} need "
                f"{least} or more, because their factor is used after {COLD_UPDATES} updates. {advice}"
            )


def _check_engine(config: TrainConfig) -> None:
    """Refuse settings that the algorithm does not use, a missing device, and a batch size that divides no rollout."""
    if config.algo == "a3c":
        if config.device != "cpu":
            raise UserError(
                f"--algo a3c trains in the CPU's shared memory, got --device {config.device}. "
                "--algo a2c and --algo ppo train on a GPU."
            )
        return
    if config.optimizer is not None:
        raise UserError(
            f"--algo {config.algo} has its own optimiser, got --optimizer {config.optimizer}, which is for "
            "--algo a3c. Leave it out."
        )
    if config.workers not in (None, 1):
        raise UserError(
            f"--algo {config.algo} has one learner, got --workers {config.workers}. "
            "Give its number of environments with --envs-per-worker."
        )
    check_device(config.device)
    if config.algo == "ppo":
        _check_batch_size(config)


def _check_batch_size(config: TrainConfig) -> None:
    shape, batch_size = config.shape, config.ppo.batch_size
    samples = shape.envs_per_worker * shape.t_max
    if samples % batch_size:
        fitting = _nearest_sizes(samples, batch_size, multiple_of=shape.t_max if config.net == "lstm" else 1)
        raise UserError(
            f"--batch-size {batch_size} does not divide a rollout of {shape.envs_per_worker} games x {shape.t_max} "
            f"steps = {samples:,} samples. The nearest sizes that do: {fitting}."
        )


def _nearest_sizes(samples: int, wanted: int, multiple_of: int) -> str:
    """The three sizes nearest to the wanted one that divide the samples and are multiples of `multiple_of`."""
    fitting = [size for size in range(multiple_of, samples + 1, multiple_of) if samples % size == 0]
    return ", ".join(map(str, sorted(sorted(fitting, key=lambda size: abs(size - wanted))[:3])))


def _default_folder(config: TrainConfig, game: Game, teachers: Sequence[Teacher]) -> Path:
    sources = [find_game(name).file_name for name in config.source_names]
    names = "+".join([teacher.name.replace(":", "-") for teacher in teachers] or sources) or "none"
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return RUNS / game.file_name / config.label / f"{names}-s{config.seed}-{stamp}"


def reopen(path: Path) -> Run:
    """Read the run in a folder.

    Raises:
        UserError: the folder is not that of a run, or a file that it needs is missing.
    """
    folder = RunFolder.of_run(path)
    if "data" in read_yaml(folder.config):
        raise UserError(f"{path} is a run on images. The commands for it are those of `kfrl supervised`.")
    config = folder.read_config(TrainConfig)
    method = get_method(config.method_name)
    with folder.naming_version():
        methods = written_settings(config, method)
    # Without the check for settings without effect, which an earlier version may have accepted.
    return _resolve(replace(config, run_dir=path, methods=methods))
