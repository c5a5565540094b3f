"""Every setting of a training run, with the paper's values as defaults. Imports no torch, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

Fraction = Annotated[float, Ge(0.0), Le(1.0)]
Positive = Annotated[float, Gt(0.0)]
NonNegative = Annotated[float, Ge(0.0)]
Count = Annotated[int, Ge(1)]


@dataclass(frozen=True)
class LinkConfig:
    """One link given by name."""

    student: str
    """The student's layer: conv1, conv2, fc, policy or value."""
    teacher: str
    """The teacher's name."""
    layer: str
    """The teacher's layer."""


@dataclass(frozen=True)
class FlowConfig:
    """Knowledge Flow. Settings marked (+) go beyond the paper and are off in configs/atari/paper.yaml."""

    dependence_coef: NonNegative = 0.1
    """lambda_1 at the end of the run; it starts at 0 and grows linearly (the paper samples 0.05, 0.1, 0.5)."""
    policy_kl_coef: NonNegative = 0.01
    """lambda_2, holds the policy near the previous iteration's (the paper samples 0.001, 0.01, 0.05)."""
    transform: Literal["auto", "conv1x1", "dense", "low-rank"] = "auto"
    """Q. dense is the paper's literal matrix: 164 MB for conv1; auto is conv1x1 between maps, dense for vectors."""
    transform_rank: Count = 64
    """Rank of the low-rank Q."""
    mixing: Literal["softmax", "simplex"] = "softmax"
    """p = softmax(w) (paper), or p trained itself and re-normalised after each step (reproduction, whose Q is also
    constant)."""
    student_weight: Annotated[float, Gt(0.0), Lt(1.0)] | None = None
    """p of the student at the start; by default an equal share with each linked teacher layer."""
    layer_weights_lr: Positive = 1.0
    """Learning rate of w as a multiple of --lr (+)."""
    independence_at: Fraction | None = 0.9
    """Share of the run at which p of the student is exactly 1 (+). None leaves p to the losses, as the paper does."""
    handover_start: Fraction = 0.3
    """Share of the run at which p of the student begins its forced way to 1 (+)."""
    handover_coef: NonNegative = 1.0
    """Weight of the distillation of the linked policy and value into the student alone, until independence (+)."""
    handover_reuse: Positive = 2.0
    """Samples of this distillation for each sample of a rollout, drawn from memory (+)."""
    handover_memory: Count = 16_384
    """Samples that all workers together remember for it (+); 28 KB each."""
    link_heads: Literal["never", "expert", "always"] = "expert"
    """Link policy and value heads too (+): of teachers of the same game (expert), of all, or of none. Actions meet by
    meaning."""
    links: tuple[LinkConfig, ...] = ()
    """Links by name (YAML only); by default every hidden layer meets the one at the same relative depth."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a student on one Atari game, alone or with frozen teachers."""

    game: str = ""
    """The game to learn, as people write it: Alien, ms_pacman, "Ms. Pacman"."""
    teachers: str = ""
    """Teachers, comma-separated: the game of one of your runs or of the zoo, a file of kfrl, or one of another program
    (FILE@GAME, hub:owner/repo/file@GAME; docs/teachers.md)."""
    method: str | None = None
    """a3c, fine-tune, knowledge-flow. Default: knowledge-flow with teachers, a3c without."""
    steps: Count = 10_000_000
    """Agent steps of all workers together; a step is 4 frames. The paper: 40M."""
    workers: Count = 16
    """Worker processes, one thread each."""
    envs_per_worker: Count = 1
    """Games that each worker plays side by side."""
    t_max: Count = 5
    """Steps of a rollout, between two updates of a worker."""
    lr: Positive | None = None
    """Adam's learning rate, falling linearly to 0. Default: the paper's 1e-4, times sqrt(envs per worker)."""
    gamma: Fraction = 0.99
    """Discount."""
    entropy_coef: NonNegative = 0.01
    """Weight of the entropy bonus."""
    value_loss_coef: NonNegative = 0.5
    """Weight of the value loss 1/2 (R - V)^2."""
    max_grad_norm: Positive = 40.0
    """Gradients are scaled down to this norm."""
    seed: Annotated[int, Ge(0)] = 1
    """Seed of the initial weights, the games and the sampling. Hogwild itself is not deterministic."""
    protocol: str = "paper"
    """paper, machado or sb3: the rules of play."""
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
    flow: FlowConfig = field(default_factory=FlowConfig)

    @property
    def learning_rate(self) -> float:
        """The learning rate in force."""
        return 1e-4 * self.envs_per_worker**0.5 if self.lr is None else self.lr

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """`teachers` split at its commas."""
        return tuple(name.strip() for name in self.teachers.split(",") if name.strip())

    @property
    def method_name(self) -> str:
        """The method in force."""
        return self.method or ("knowledge-flow" if self.teacher_names else "a3c")
