"""Every setting of a training run, with the paper's values as defaults. Imports no torch, so that `--help` is quick."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from kfrl.config import Count, Fraction, LinkConfig, NonNegative, Positive, split_names


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
    """Links by name (YAML only), between conv1, conv2, fc, policy and value; by default every hidden layer meets the
    one at the same relative depth."""


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
class Shape:
    """The settings whose defaults follow from the algorithm, the preset and the machine; all in force."""

    workers: int
    envs_per_worker: int
    t_max: int
    lr: float
    max_grad_norm: float


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
    algo: Literal["a3c", "a2c", "ppo"] = "a3c"
    """a3c: asynchronous workers on the CPU. a2c, ppo: one learner, all games in step, on CPU or GPU."""
    preset: Literal["paper", "fast"] = "paper"
    """paper: the published shape. fast: the workers and games that suit this machine, for whichever of them is not
    given."""
    device: str = "cpu"
    """Where a2c and ppo learn: cpu, cuda, cuda:1. a3c's shared memory is the CPU's."""
    workers: Count | Literal["auto"] | None = None
    """Worker processes of a3c, one thread each; auto: one for each core. Default: 16."""
    envs_per_worker: Count | None = None
    """Games that each worker plays side by side; a2c and ppo have one worker. Default: 1; a2c 16, ppo 8."""
    t_max: Count | None = None
    """Steps of a rollout, between two updates of a worker. Default: 5; ppo 128."""
    lr: Positive | None = None
    """Learning rate, falling linearly to 0. Default: a3c the paper's 1e-4, times sqrt(envs per worker); a2c 7e-4; ppo
    2.5e-4."""
    gamma: Fraction = 0.99
    """Discount."""
    entropy_coef: NonNegative = 0.01
    """Weight of the entropy bonus."""
    value_loss_coef: NonNegative = 0.5
    """Weight of the value loss 1/2 (R - V)^2."""
    max_grad_norm: Positive | None = None
    """Gradients are scaled down to this norm. Default: 40, of losses summed over a rollout; a2c and
    ppo 0.5, of means."""
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
    ppo: PPOConfig = field(default_factory=PPOConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)

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
        return Shape(
            workers=workers,
            envs_per_worker=envs,
            t_max=self.t_max or usual.t_max,
            lr=self.lr or (usual.lr * envs**0.5 if self.algo == "a3c" else usual.lr),
            max_grad_norm=self.max_grad_norm or usual.max_grad_norm,
        )

    def with_shape(self) -> TrainConfig:
        """The same settings with `shape` written out, so that another machine runs the same."""
        return replace(self, **vars(self.shape))

    @property
    def label(self) -> str:
        """What tables and folders call the way of training: the method, and the algorithm where it is not a3c."""
        if self.algo == "a3c":
            return self.method_name
        return self.algo if self.method_name == "a3c" else f"{self.method_name}-{self.algo}"

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """`teachers` split at its commas."""
        return split_names(self.teachers)

    @property
    def method_name(self) -> str:
        """The method in force."""
        return self.method or ("knowledge-flow" if self.teacher_names else "a3c")


FAST_ENVS = 32
"""Games for each core under --preset fast; docs/performance.md has the rates of others."""

_USUAL = {
    "a3c": Shape(workers=16, envs_per_worker=1, t_max=5, lr=1e-4, max_grad_norm=40.0),
    "a2c": Shape(workers=1, envs_per_worker=16, t_max=5, lr=7e-4, max_grad_norm=0.5),
    "ppo": Shape(workers=1, envs_per_worker=8, t_max=128, lr=2.5e-4, max_grad_norm=0.5),
}
"""Mnih et al. 2016 with the rate of the Knowledge Flow paper; OpenAI's A2C; Schulman et al. 2017, table 5."""


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
