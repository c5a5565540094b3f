"""The settings of a training run on a game. Imports no torch, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from agents.engines.settings import ACKTRConfig, PPOConfig
from kfrl.config import Count, Fraction, Init, NonNegative, Positive, split_names, with_former_groups
from kfrl.machine import cores
from kfrl.registry import method_label


@dataclass(frozen=True)
class Shape:
    """The effective values of the settings whose defaults depend on the algorithm, the preset and the machine."""

    workers: int
    envs_per_worker: int
    t_max: int
    lr: float
    value_loss_coef: float
    max_grad_norm: float


@dataclass(frozen=True)
class TrainConfig:
    """Train a student on one Atari game, alone or with frozen teachers."""

    game: str = ""
    """The game to learn, in any spelling: Alien, ms_pacman, "Ms. Pacman"; freeway:m1d0 is its mode 1."""
    teachers: str = ""
    """Teachers, comma-separated: the game of one of your runs or of the zoo, a file of kfrl, or a file of another
    program (FILE@GAME, hub:owner/repo/file@GAME; docs/teachers.md); all: the whole zoo."""
    teacher_sha256: tuple[str, ...] = ()
    """Checksums of the teachers' files, in their order, as in a run's config.yaml; other files are refused. Default: no
    check."""
    answers: str = ""
    """Files of `kfrl collect`, comma-separated, one for each game. policy-distillation and actor-mimic learn from them
    instead of playing the teachers; knowledge-flow folds on them."""
    answers_sha256: tuple[str, ...] = ()
    """Checksums of these files, in their order, as in a run's config.yaml; other files are refused. Default: no
    check."""
    source_games: str = ""
    """Games to learn before this one or at the same time, comma-separated, for methods with source games."""
    method: str | None = None
    """a3c, actor-mimic, distral, fine-tune, knowledge-flow, pathnet, policy-distillation, progressive; or a
    file of your own, path/to/file.py. Default: knowledge-flow with teachers, policy-distillation with
    --answers alone, a3c without either."""
    steps: Count = 10_000_000
    """Agent steps of all workers together, without those in source games; a step is 4 frames. The paper: 40M."""
    source_steps: Count | None = None
    """Agent steps of each phase of source games before the game. Default: the same as --steps."""
    algo: Literal["a3c", "a2c", "ppo", "acktr"] = "a3c"
    """a3c: asynchronous workers on the CPU. a2c, ppo, acktr: one learner with synchronous games, on CPU or GPU."""
    preset: Literal["paper", "fast"] | None = None
    """Default of --workers and --envs-per-worker. paper: the published values. fast: values for this machine. Default:
    fast; for a2c, ppo and acktr paper."""
    device: str = "cpu"
    """Device of a2c, ppo and acktr: cpu, cuda, cuda:1. a3c trains on the CPU."""
    workers: Count | Literal["auto"] | None = None
    """Worker processes of a3c, one thread each; auto: one for each core. Default: auto, but at least one for each game
    that is learned at the same time; --preset paper 16."""
    envs_per_worker: Count | None = None
    """Environments of each worker; a2c, ppo and acktr have one worker. Default: 32, --preset paper 1; a2c 16, ppo 8,
    acktr 32."""
    t_max: Count | None = None
    """Steps of a rollout. Default: 5; ppo 128, acktr 20."""
    lr: Positive | None = None
    """Learning rate; it falls linearly to 0. Default: a3c the paper's 1e-4 (with rmsprop 7e-4) times
    sqrt(envs per worker); a2c 7e-4; ppo 2.5e-4; acktr 0.25."""
    optimizer: Literal["adam", "rmsprop"] | None = None
    """Optimiser of a3c: adam, or rmsprop as in the A3C paper; all workers share its statistics. a2c, ppo and acktr
    have their own. Default: adam."""
    gamma: Fraction = 0.99
    """Discount."""
    entropy_coef: NonNegative = 0.01
    """Weight of the entropy bonus; Distral's c_Ent."""
    value_loss_coef: NonNegative | None = None
    """Weight of the value loss 1/2 (R - V)^2; code without the 1/2 needs half this number. Default: 0.5; a2c 1."""
    max_grad_norm: Positive | None = None
    """Norm to which gradients are clipped. Default: 40, for losses summed over a rollout; a2c, ppo 0.5, for means."""
    seed: Annotated[int, Ge(0)] = 1
    """Seed of the initial weights, the games and the sampling. The order of a3c's updates stays random."""
    protocol: str = "paper"
    """Rules of play: paper, nature (games end after five minutes), machado or sb3."""
    net: Literal["feed-forward", "lstm"] = "feed-forward"
    """The student's net. lstm: the A3C paper's recurrent net, with as many LSTM cells as --hidden before the heads."""
    convs: tuple[tuple[int, int, int], ...] = ((16, 8, 4), (32, 4, 2))
    """The student's convolutions: (filters, kernel, stride) each."""
    hidden: Count = 256
    """Units of the student's fully connected layer."""
    init: Init = "orthogonal"
    """Initialisation of the student's weights: orthogonal (OpenAI baselines), torch (PyTorch's uniform default, with
    which A3C was published), xavier (Glorot and Bengio 2010) or he (He et al. 2015)."""
    run_dir: Path | None = None
    """The run's folder. Default: runs/<game>/<method>/<teachers>-s<seed>-<time>."""
    eval_episodes: Annotated[int, Ge(0)] = 30
    """Episodes of the student's final evaluation; 0 skips it."""
    curve_points: Annotated[int, Ge(0)] = 20
    """Number of evaluations of the student alone during training; 0: none."""
    curve_episodes: Count = 10
    """Episodes of each of these evaluations."""
    log_to: str = ""
    """Additional loggers for the rows of metrics.csv: wandb, mlflow or both, comma-separated."""
    report_frames: tuple[Count, ...] = (10_000_000, 50_000_000, 100_000_000, 200_000_000)
    """Emulator frames at which the mean of the last 100 training games is recorded; also at the run's end (Machado et
    al. 2018)."""
    checkpoint_every: Positive = 300.0
    """Seconds between checkpoints."""
    worker_timeout: Positive = 300.0
    """Seconds without a step after which a worker counts as hung and the run stops."""
    acktr: ACKTRConfig = field(default_factory=ACKTRConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of methods, by the method's name; with `--method NAME` they are flags."""

    @property
    def shape(self) -> Shape:
        """The effective workers, environments, rollout length and rates."""
        usual = _USUAL[self.algo]
        workers, envs = (usual.workers, usual.envs_per_worker)
        if (self.preset or ("fast" if self.algo == "a3c" else "paper")) == "fast":
            workers, envs = (cores(), FAST_ENVS) if self.algo == "a3c" else (1, FAST_ENVS * cores())
        if self.workers is not None:
            workers = cores() if self.workers == "auto" else self.workers
        envs = self.envs_per_worker or envs
        lr = RMSPROP_LR if self.optimizer == "rmsprop" else usual.lr
        return Shape(
            workers=workers,
            envs_per_worker=envs,
            t_max=self.t_max or usual.t_max,
            lr=self.lr or (lr * envs**0.5 if self.algo == "a3c" else usual.lr),
            value_loss_coef=usual.value_loss_coef if self.value_loss_coef is None else self.value_loss_coef,
            max_grad_norm=self.max_grad_norm or usual.max_grad_norm,
        )

    @property
    def steps_an_update(self) -> float:
        """Agent steps for each update of a learner from rewards; ppo makes several passes over its samples."""
        samples = self.shape.envs_per_worker * self.shape.t_max
        return self.ppo.batch_size / self.ppo.epochs if self.algo == "ppo" else float(samples)

    def with_shape(self) -> TrainConfig:
        """The same settings with `shape` written into them, so that they mean the same on another machine."""
        return replace(self, **vars(self.shape))

    @property
    def label(self) -> str:
        """The name in tables and folders: the method, and the algorithm if that is not a3c."""
        name = method_label(self.method_name)
        if self.algo == "a3c":
            return name
        return self.algo if name == "a3c" else f"{name}-{self.algo}"

    @staticmethod
    def renew(values: dict[str, Any]) -> dict[str, Any]:
        """Convert the settings of earlier versions to the present names."""
        own = {"own": (method_label(values.get("method") or ""),)} if values.get("own") else {"own": ()}
        return with_former_groups(values, {**_FORMER_GROUPS, **own})

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """`teachers` as a tuple."""
        return split_names(self.teachers)

    @property
    def answer_files(self) -> tuple[Path, ...]:
        """`answers` as a tuple."""
        return tuple(Path(name).expanduser() for name in split_names(self.answers))

    @property
    def source_names(self) -> tuple[str, ...]:
        """`source_games` as a tuple."""
        return tuple(name.strip() for name in self.source_games.split(",") if name.strip())

    @property
    def method_name(self) -> str:
        """The name of the effective method, or the path of its file."""
        return self.method or (
            "knowledge-flow" if self.teacher_names else "policy-distillation" if self.answers else "a3c"
        )


RMSPROP_LR = 7e-4
"""Learning rate of the A3C paper's authors, for one environment per worker."""
RECURRENT_ALGOS = ("a3c", "a2c", "ppo")
"""Algorithms whose updates go through a rollout in its order, as recurrent nets need it."""
FAST_ENVS = 32
"""Environments per core with --preset fast; docs/performance.md compares the rates of other numbers."""

_USUAL = {
    "a3c": Shape(workers=16, envs_per_worker=1, t_max=5, lr=1e-4, value_loss_coef=0.5, max_grad_norm=40.0),
    "a2c": Shape(workers=1, envs_per_worker=16, t_max=5, lr=7e-4, value_loss_coef=1.0, max_grad_norm=0.5),
    "ppo": Shape(workers=1, envs_per_worker=8, t_max=128, lr=2.5e-4, value_loss_coef=0.5, max_grad_norm=0.5),
    "acktr": Shape(workers=1, envs_per_worker=32, t_max=20, lr=0.25, value_loss_coef=1.0, max_grad_norm=0.5),
}
"""Defaults by algorithm; docs/defaults.md gives their sources."""

_FORMER_GROUPS = {
    "flow": ("knowledge-flow",),
    "distral": ("distral",),
    "pathnet": ("pathnet",),
    "fine_tune": ("fine-tune",),
    "progressive": ("progressive",),
    "distillation": ("policy-distillation", "actor-mimic"),
}
"""Group of settings in files of earlier versions -> the methods that have these settings now."""
