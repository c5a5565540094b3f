"""Every setting of a training run, with the paper's values as defaults. Imports no torch, so that `--help` is quick."""

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
    """The settings whose defaults follow from the algorithm, the preset and the machine; all in force."""

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
    """The game to learn, as people write it: Alien, ms_pacman, "Ms. Pacman"; freeway:m1d0 is its mode 1."""
    teachers: str = ""
    """Teachers, comma-separated: the game of one of your runs or of the zoo, a file of kfrl, or one of another program
    (FILE@GAME, hub:owner/repo/file@GAME; docs/teachers.md); all: the whole zoo."""
    teacher_sha256: tuple[str, ...] = ()
    """Checksums of the teachers' files, in their order, as a run's config.yaml has them: other files are refused. None:
    the files are taken as they are."""
    answers: str = ""
    """Files of `kfrl collect`, comma-separated, one for each game: policy-distillation and actor-mimic learn from them
    without the teachers and their play; knowledge-flow folds on them."""
    source_games: str = ""
    """Games that are learned before this one or beside it, comma-separated, for methods that take them."""
    method: str | None = None
    """a3c, actor-mimic, distral, fine-tune, knowledge-flow, pathnet, policy-distillation, progressive; or a
    file of your own, path/to/file.py. Default: knowledge-flow with teachers, policy-distillation with
    --answers alone, a3c without either."""
    steps: Count = 10_000_000
    """Agent steps of all workers together; a step is 4 frames. The paper: 40M. Source games count apart."""
    source_steps: Count | None = None
    """Agent steps of each phase of source games that comes before the game. Default: as many as --steps."""
    algo: Literal["a3c", "a2c", "ppo", "acktr"] = "a3c"
    """a3c: asynchronous workers on the CPU. a2c, ppo, acktr: one learner, all games in step, on CPU or GPU."""
    preset: Literal["paper", "fast"] | None = None
    """paper: the published shape. fast: the workers and games that suit this machine, for whichever of them is not
    given. Default: fast; a2c, ppo and acktr paper."""
    device: str = "cpu"
    """Where a2c and ppo learn: cpu, cuda, cuda:1. a3c's shared memory is the CPU's."""
    workers: Count | Literal["auto"] | None = None
    """Worker processes of a3c, one thread each; auto: one for each core. Default: auto, and one for each game that is
    learned at the same time; --preset paper 16."""
    envs_per_worker: Count | None = None
    """Games that each worker plays side by side; a2c and ppo have one worker. Default: 32, --preset paper 1; a2c 16,
    ppo 8, acktr 32."""
    t_max: Count | None = None
    """Steps of a rollout, between two updates of a worker. Default: 5; ppo 128, acktr 20."""
    lr: Positive | None = None
    """Learning rate, falling linearly to 0. Default: a3c the paper's 1e-4, times sqrt(envs per worker); 7e-4
    in its place with rmsprop; a2c 7e-4; ppo 2.5e-4; acktr 0.25."""
    optimizer: Literal["adam", "rmsprop"] | None = None
    """Of a3c: adam, or rmsprop as in the A3C paper; its statistics are shared by all workers. a2c, ppo and acktr
    have their own. Default: adam."""
    gamma: Fraction = 0.99
    """Discount."""
    entropy_coef: NonNegative = 0.01
    """Weight of the entropy bonus; Distral's c_Ent."""
    value_loss_coef: NonNegative | None = None
    """Weight of the value loss 1/2 (R - V)^2. Code without the 1/2 has half this number for the same loss. Default:
    0.5; a2c 1."""
    max_grad_norm: Positive | None = None
    """Gradients are scaled down to this norm. Default: 40, of losses summed over a rollout; a2c and
    ppo 0.5, of means."""
    seed: Annotated[int, Ge(0)] = 1
    """Seed of the initial weights, the games and the sampling. Hogwild itself is not deterministic."""
    protocol: str = "paper"
    """paper, nature (a cap of five minutes a game), machado or sb3: the rules of play."""
    convs: tuple[tuple[int, int, int], ...] = ((16, 8, 4), (32, 4, 2))
    """The student's convolutions: (filters, kernel, stride) each."""
    hidden: Count = 256
    """The student's fully connected units."""
    init: Init = "orthogonal"
    """What the student's weights start from: orthogonal as OpenAI baselines' do; torch, Torch's uniform ones, which
    A3C was published with; xavier (Glorot and Bengio 2010) or he (He et al. 2015)."""
    run_dir: Path | None = None
    """The run's folder. Default: runs/<game>/<method>/<teachers>-s<seed>-<time>."""
    eval_episodes: Annotated[int, Ge(0)] = 30
    """Episodes of the student's final evaluation; 0 skips it."""
    curve_points: Annotated[int, Ge(0)] = 20
    """How often the student alone is evaluated along the run; 0: never."""
    curve_episodes: Count = 10
    """Episodes of each of these."""
    log_to: str = ""
    """wandb, mlflow or both, comma-separated: rows of metrics.csv go there too."""
    report_frames: tuple[Count, ...] = (10_000_000, 50_000_000, 100_000_000, 200_000_000)
    """Emulator frames at which the mean of the last 100 training games is noted, beside the run's end (Machado et al.
    2018)."""
    checkpoint_every: Positive = 300.0
    """Seconds between checkpoints."""
    worker_timeout: Positive = 300.0
    """A worker without a step for this many seconds is hung and stops the run."""
    acktr: ACKTRConfig = field(default_factory=ACKTRConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of methods, by the method's name; `--method NAME` has them as flags."""

    @property
    def shape(self) -> Shape:
        """Workers, games, rollout length and rates in force."""
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

    def with_shape(self) -> TrainConfig:
        """The same settings with `shape` written out, so that another machine runs the same."""
        return replace(self, **vars(self.shape))

    @property
    def label(self) -> str:
        """The name in tables and folders: the method, and the algorithm where it is not a3c."""
        name = method_label(self.method_name)
        if self.algo == "a3c":
            return name
        return self.algo if name == "a3c" else f"{name}-{self.algo}"

    @staticmethod
    def renew(values: dict[str, Any]) -> dict[str, Any]:
        """Settings as earlier versions wrote them, by the names that they have now."""
        own = {"own": (method_label(values.get("method") or ""),)} if values.get("own") else {"own": ()}
        return with_former_groups(values, {**_FORMER_GROUPS, **own})

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """`teachers` split at its commas."""
        return split_names(self.teachers)

    @property
    def answer_files(self) -> tuple[Path, ...]:
        """`answers` split at its commas."""
        return tuple(Path(name).expanduser() for name in split_names(self.answers))

    @property
    def source_names(self) -> tuple[str, ...]:
        """`source_games` split at its commas."""
        return tuple(name.strip() for name in self.source_games.split(",") if name.strip())

    @property
    def method_name(self) -> str:
        """The method in force: its name, or the path of a file."""
        return self.method or (
            "knowledge-flow" if self.teacher_names else "policy-distillation" if self.answers else "a3c"
        )


RMSPROP_LR = 7e-4
"""Of the A3C paper's authors, for one game a worker."""
FAST_ENVS = 32
"""Games for each core under --preset fast; docs/performance.md has the rates of others."""

_USUAL = {
    "a3c": Shape(workers=16, envs_per_worker=1, t_max=5, lr=1e-4, value_loss_coef=0.5, max_grad_norm=40.0),
    "a2c": Shape(workers=1, envs_per_worker=16, t_max=5, lr=7e-4, value_loss_coef=1.0, max_grad_norm=0.5),
    "ppo": Shape(workers=1, envs_per_worker=8, t_max=128, lr=2.5e-4, value_loss_coef=0.5, max_grad_norm=0.5),
    "acktr": Shape(workers=1, envs_per_worker=32, t_max=20, lr=0.25, value_loss_coef=1.0, max_grad_norm=0.5),
}
"""docs/defaults.md has the source of each."""

_FORMER_GROUPS = {
    "flow": ("knowledge-flow",),
    "distral": ("distral",),
    "pathnet": ("pathnet",),
    "fine_tune": ("fine-tune",),
    "progressive": ("progressive",),
    "distillation": ("policy-distillation", "actor-mimic"),
}
"""Groups of settings in the files of earlier versions, and the methods that have them now."""
