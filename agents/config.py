"""Every setting of a training run, with the paper's values as defaults. Imports no torch, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt

from kfrl.config import Count, FlowSettings, Fraction, NonNegative, Positive, split_names
from kfrl.machine import cores
from kfrl.registry import method_label


@dataclass(frozen=True)
class FlowConfig(FlowSettings):
    """Knowledge Flow. Settings marked (+) go beyond the paper and are off in configs/atari/paper.yaml."""

    policy_kl_coef: NonNegative = 0.01
    """lambda_2, holds the policy near the previous iteration's (the paper samples 0.001, 0.01, 0.05)."""
    policy_kl_every: Count = 1
    """Updates of a learner after which these weights to stay near are taken anew (+); 1 is the previous iteration."""
    student_weight: Annotated[float, Gt(0.0), Lt(1.0)] | None = 0.01
    """p of the student at the start; None: an equal share with each linked teacher layer."""
    layer_weights_lr: Positive = 100.0
    """How far w moves while linked: so many times its mean gradient, by plain gradient descent (+)."""
    choose_channels: bool = True
    """Start the Qs as a choice of the teachers' most useful channels on this game (+), else orthogonal."""
    match_scales: bool = False
    """Bring the teachers' hidden features to the scale of the fresh student's own (+), once, before training. For runs
    that stay linked: what is folded trains best at the teachers' own scale."""
    link_heads: Literal["never", "expert", "always"] = "expert"
    """Link policy and value heads too (+): of teachers of the same game (expert), of all, or of none. Actions meet by
    meaning."""
    fold_at: Fraction | None = 0.0
    """Share of the run that the student learns with its links, before it is folded into a plain net, which goes on
    alone (+). None: the student stays linked, as in the paper."""
    fold_observations: Annotated[int, Ge(0)] = 8_192
    """Observations of the linked student's play for the fold's regressions, every fourth step of it (+). 0: no fold;
    the plain net starts afresh."""
    imitate: Literal["never", "expert", "always"] = "expert"
    """Whether the plain net then imitates the linked one before it learns alone (+): only if a teacher plays the same
    game (expert), always, or never."""
    imitation_steps: Count = 100_000
    """Steps of this imitation (+), at most two thirds of what is left of the run."""
    imitation_lr: Positive = 3e-3
    """Its learning rate, of an Adam of its own, falling linearly to 0 (+). Less where the fold has the policy with an
    R2 above 0.8."""
    imitation_batch: Count = 256
    """Samples of each of its updates (+)."""
    imitation_samples: Count = 8
    """Samples that it learns from for each step of play (+)."""
    imitation_memory: Count = 65_536
    """Samples that all workers together remember for it (+); 28 KB each."""
    imitation_value_coef: NonNegative = 0.05
    """Weight of the squared error of the values beside the KL of the policies (+)."""
    kickstart_coef: NonNegative = 1.0
    """Weight of the KL to the linked net that stays beside the rewards when the plain net then learns alone (+); it
    falls to 0 by the middle of that phase (Schmitt et al. 2018), and sooner if its games reach the teacher's score."""


@dataclass(frozen=True)
class DistralConfig:
    """Distral. c_Ent is --entropy-coef; alpha = c_KL / (c_KL + c_Ent), beta = 1 / (c_KL + c_Ent)."""

    columns: Literal[1, 2] = 2
    """1: a game's policy is its own net. 2: it is the shared policy's logits, times alpha, plus those of its own
    net."""
    c_kl: NonNegative = 0.01
    """Weight of the divergence of a game's policy from the shared one."""


@dataclass(frozen=True)
class PathNetConfig:
    """PathNet. L is the number of --module-convs and one fully connected layer."""

    modules: Count = 10
    """M, modules in each layer."""
    active_modules: Count = 4
    """N, the most of them that a path uses."""
    module_convs: tuple[tuple[int, int, int], ...] = ((8, 8, 4), (8, 4, 2), (8, 3, 1))
    """A module in each layer but the last: (filters, kernel, stride)."""
    module_units: Count = 256
    """Units of a module in the last layer."""
    population: Count = 64
    """P, genotypes; a worker plays its share of them in turn."""
    tournament_episodes: Count = 10
    """T, games that a genotype plays before each tournament; rounded up to a multiple of a worker's games."""
    rivals: Count = 10
    """B, others whose scores it then meets."""


@dataclass(frozen=True)
class PPOConfig:
    """What --algo ppo adds: a clipped objective, several passes over a rollout, and GAE."""

    epochs: Count = 4
    """Passes over each rollout."""
    batch_size: Count = 256
    """Samples of a minibatch; divides envs x t_max."""
    clip_range: Positive = 0.1
    """The ratio of new to old probabilities is clipped to 1 -+ this."""
    gae_lambda: Fraction = 0.95
    """lambda of generalised advantage estimation; 1 is the Monte Carlo end."""


@dataclass(frozen=True)
class ACKTRConfig:
    """What --algo acktr adds: natural gradients by K-FAC."""

    trust_region: Positive = 1e-3
    """delta: lr^2 g^T F^-1 g of an update is at most this; its KL divergence is about half of it."""
    damping: Positive = 0.01
    """Added to every eigenvalue of the Fisher matrix."""
    stats_decay: Fraction = 0.99
    """Decay of the running averages of its factors."""
    inverse_period: Count = 20
    """Updates between two eigen-decompositions of the factors."""
    fisher_samples: Count = 160
    """Observations of each rollout that the factors are estimated on."""


@dataclass(frozen=True)
class FineTuneConfig:
    """Fine-tuning."""

    heads_only: bool = False
    """The teacher's body stays as it is, and the new policy and value heads alone are trained (the progressive nets
    paper's baseline 2; training everything is its baseline 3)."""


@dataclass(frozen=True)
class ProgressiveConfig:
    """Progressive nets."""

    initial_scalar: Positive = 0.1
    """alpha at the start: the learned scalar that a frozen column's activations are multiplied by (the paper samples
    1, 0.1, 0.01)."""


@dataclass(frozen=True)
class DistillationConfig:
    """Policy distillation and actor-mimic."""

    distill_loss: Literal["kl", "nll", "mse"] = "kl"
    """policy-distillation alone: KL to the teacher's policy, log-likelihood of its best action, or squared error of its
    logits or Q values. The paper compares all three; KL is its best."""
    kl_direction: Literal["forward", "reverse", "mixed"] = "forward"
    """policy-distillation's kl alone: KL[teacher || student] as in the paper, KL[student || teacher], or their mean."""
    temperature: Positive | None = None
    """Teachers' logits are divided by it. Default: 1; 0.01 for Q values under policy-distillation (the papers)."""
    distill_actor: Literal["teacher", "student"] | None = None
    """Who plays the games that are imitated. Default: the teacher under policy-distillation, the student, who meets its
    own mistakes, under actor-mimic (the papers)."""
    replay_reuse: Positive = 2.0
    """Samples of an update for each sample of a rollout, drawn from memory."""
    replay_memory: Count = 16_384
    """Samples that all workers together remember; 28 KB each."""
    feature_coef: NonNegative = 0.01
    """actor-mimic alone: lambda, the weight of the regression on the teacher's last hidden layer."""


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
    (FILE@GAME, hub:owner/repo/file@GAME; docs/teachers.md)."""
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
    preset: Literal["paper", "fast"] = "paper"
    """paper: the published shape. fast: the workers and games that suit this machine, for whichever of them is not
    given."""
    device: str = "cpu"
    """Where a2c and ppo learn: cpu, cuda, cuda:1. a3c's shared memory is the CPU's."""
    workers: Count | Literal["auto"] | None = None
    """Worker processes of a3c, one thread each; auto: one for each core. Default: 16."""
    envs_per_worker: Count | None = None
    """Games that each worker plays side by side; a2c and ppo have one worker. Default: 1; a2c 16, ppo 8, acktr 32."""
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
    """Weight of the value loss 1/2 (R - V)^2; twice what others call it who leave out the 1/2. Default: 0.5; a2c 1."""
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
    run_dir: Path | None = None
    """The run's folder. Default: runs/<game>/<method>/<teachers>-s<seed>-<time>."""
    eval_episodes: Annotated[int, Ge(0)] = 30
    """Episodes of the student's final evaluation; 0 skips it."""
    curve_points: Annotated[int, Ge(0)] = 20
    """How often the student alone is evaluated along the run; 0: never."""
    curve_episodes: Count = 10
    """Episodes of each of these."""
    checkpoint_every: Positive = 300.0
    """Seconds between checkpoints."""
    worker_timeout: Positive = 300.0
    """A worker without a step for this many seconds is hung and stops the run."""
    acktr: ACKTRConfig = field(default_factory=ACKTRConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    distral: DistralConfig = field(default_factory=DistralConfig)
    pathnet: PathNetConfig = field(default_factory=PathNetConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    fine_tune: FineTuneConfig = field(default_factory=FineTuneConfig)
    progressive: ProgressiveConfig = field(default_factory=ProgressiveConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    own: dict[str, Any] = field(default_factory=dict)
    """Settings that the method itself declares, by name; flags of their own on the command line."""

    @property
    def shape(self) -> Shape:
        """Workers, games, rollout length and rates in force."""
        usual = _USUAL[self.algo]
        workers, envs = (usual.workers, usual.envs_per_worker)
        if self.preset == "fast":
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
        """What tables and folders call the way of training: the method, and the algorithm where it is not a3c."""
        name = method_label(self.method_name)
        if self.algo == "a3c":
            return name
        return self.algo if name == "a3c" else f"{name}-{self.algo}"

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
