"""Every setting of a classifier's training. Imports no torch, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Lt

from kfrl.config import Count, FlowSettings, Fraction, NonNegative, Positive, split_names
from kfrl.registry import method_label

Augment = Literal["auto", "none", "shift", "crop-flip"]
Share = Annotated[float, Ge(0.0), Lt(1.0)]


@dataclass(frozen=True)
class DistillationConfig:
    """Soft targets: what every method that imitates a teacher's logits reads."""

    temperature: Positive = 4.0
    """T of softmax(logits / T)."""
    soft_weight: NonNegative = 0.9
    """Weight of T^2 KL[teacher || student]."""
    hard_weight: NonNegative = 0.1
    """Weight of the cross-entropy with the labels."""


@dataclass(frozen=True)
class ClassifierFlowConfig(FlowSettings):
    """Knowledge Flow between classifiers. Settings marked (+) go beyond the paper."""

    kl_coef: NonNegative = 0.01
    """lambda_2, holds the classifier near the previous iteration's."""
    dependence_schedule: Literal["linear", "constant"] = "linear"
    """lambda_1 over the run: from 0 up (paper), or --dependence-coef all the time (reproduction)."""
    layer_weights_lr: Positive = 1.0
    """Learning rate of w as a multiple of --lr (+)."""
    handover_coef: NonNegative = 1.0
    """Weight of the distillation of the linked net into the student alone, until independence (+)."""
    fold: bool = True
    """Start the student's linked layers as what its teachers' most useful channels bring, by ridge regression on the
    training images (+), where a layer is a convolution or fully connected."""
    independence_at: Fraction | None = 0.4
    """Share of the run at which p of the student is exactly 1 (+). None leaves p to the losses, as the paper does."""
    handover_start: Fraction = 0.0
    """Share of the run at which p of the student begins its forced way to 1 (+)."""
    link_heads: Literal["never", "expert", "always"] = "expert"
    """Link the logits too (+): of teachers of the same classes (expert), of all, or of none."""
    soft_targets: bool = False
    """Learn from the soft targets of the teachers of the same classes too, with the weights of kd (Table 4)."""


@dataclass(frozen=True)
class FitNetsConfig:
    """FitNets: hints from the middle of the teacher, then soft targets."""

    hint_share: Fraction = 0.25
    """Share of the epochs that the hint stage takes, at least one of them."""
    hint_layer: str | None = None
    """The teacher's layer that gives the hint. Default: its middle one."""
    guided_layer: str | None = None
    """The student's layer that is guided. Default: its middle one."""
    hint_weight: Positive = 100.0
    """Weight of the hint loss, a mean over a map."""
    soft_start: NonNegative = 4.0
    """lambda, the weight of the soft targets, when the second stage begins; it falls linearly."""
    soft_end: NonNegative = 1.0
    """lambda when it ends."""


@dataclass(frozen=True)
class FspConfig:
    """FSP: the flow between layers first, then the labels."""

    fsp_share: Fraction = 0.25
    """Share of the epochs that the first stage takes, at least one of them."""
    fsp_weight: Positive = 1.0
    """Weight of the FSP loss, a mean over a matrix."""
    fsp_pool: Literal["max", "avg", "none"] = "max"
    """What brings the larger of two maps to the size of the smaller: max pooling (paper), average pooling, or nothing,
    which refuses such maps."""


@dataclass(frozen=True)
class MutualConfig:
    """Deep mutual learning."""

    peers: str = ""
    """The nets that learn beside the student, by name, comma-separated. Default: one like it."""


@dataclass(frozen=True)
class NodeConfig:
    """A net of a knowledge transfer graph."""

    name: str
    net: str | None = None
    """By name; the student's by default."""
    teacher: str | None = None
    """One of --teachers: pre-trained and frozen."""


@dataclass(frozen=True)
class EdgeConfig:
    """Knowledge that goes from one node to another."""

    source: str
    """A node's name, or `labels`."""
    target: str
    gate: str = "through"
    """through, cutoff, linear, negative-linear or correct."""
    loss: Literal["kl", "apart", "attention", "attention-apart"] = "kl"
    """What is alike: the outputs, or the attention maps of a layer; apart: pushed away from each other (+)."""
    source_layer: str | None = None
    """attention: the source's layer. Default: its last hidden one that gives maps."""
    target_layer: str | None = None
    """attention: the target's layer, likewise."""


@dataclass(frozen=True)
class CollaborativeConfig:
    """Deep collaborative learning. The graph is given in YAML."""

    nodes: tuple[NodeConfig, ...] = ()
    """The first is the target: the student."""
    edges: tuple[EdgeConfig, ...] = ()
    edge_temperature: Positive = 1.0
    """T of the edges between nets."""


@dataclass(frozen=True)
class BornAgainConfig:
    """Born-again nets."""

    generations: Count = 3
    """Students after the first net, each the pupil of the one before; each takes --epochs epochs."""


@dataclass(frozen=True)
class GrowthConfig:
    """Anti-distillation: a trained net grown wider."""

    extension: Literal["zero", "uniform"] = "zero"
    """What the new weights start from."""
    theta: Positive = 0.01
    """uniform: U[0, theta]."""


@dataclass(frozen=True)
class SupervisedConfig:
    """Train an image classifier, alone or with frozen teachers."""

    data: str = ""
    """The images to learn: mnist, emnist-letters, fashion-mnist, cifar-10, ...; NAME-no-CLASS leaves one class out of
    the training images, NAME-half keeps the first half of the classes, NAME-other-half the others; or a folder of
    images by class."""
    teachers: str = ""
    """Teachers, comma-separated: the data set of one of your runs, or the path of a run."""
    teacher_sha256: tuple[str, ...] = ()
    """Checksums of the teachers' files, in their order, as a run's config.yaml has them: other files are refused. None:
    the files are taken as they are."""
    answers: Path | None = None
    """A file of `kfrl supervised collect`: kd and mimic learn from it without the teachers, with --augment none."""
    method: str | None = None
    """How to learn; docs/supervised.md has them all. Or a file of your own: path/to/file.py. Default:
    knowledge-flow with teachers, kd with --answers alone, baseline without either."""
    net: str | None = None
    """The student: mlp-800-800, cifar-conv-128, resnet-20, densenet-100-24, ... Default: what suits the images."""
    train_images: Count | None = None
    """Learn from so many training images only, the same share of every class, up to rounding, and the same ones for
    every seed. Default: all."""
    epochs: Count = 20
    """Passes over the training images."""
    batch_size: Count = 128
    """Images of an update."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """sgd has Nesterov momentum."""
    lr: Positive = 0.05
    """Learning rate at the start."""
    schedule: Literal["cosine", "steps", "constant"] = "cosine"
    """How the learning rate falls: to 0 along a cosine, or to a tenth at each of --milestones."""
    milestones: tuple[Fraction, ...] = (0.5, 0.75)
    """Shares of the epochs at which `steps` falls."""
    momentum: Share = 0.9
    """Of sgd."""
    weight_decay: NonNegative = 1e-4
    """L2 penalty on all weights."""
    augment: Augment = "auto"
    """shift: a random crop after padding; crop-flip: that, and a flip at random; auto: what is usual for the images."""
    pad: Count = 4
    """Pixels of padding before the crop."""
    validation: Share = 0.1
    """Share of the training images, the same of every class, that is kept back for choices. A folder with val/ and
    test/ has validation images of its own, which are taken instead, unless this is 0."""
    keep: Literal["best", "last"] = "best"
    """Which epoch's student is kept: the best on the validation images, or the last."""
    seed: Annotated[int, Ge(0)] = 1
    """Seed of the initial weights and of the order of the images. The validation images do not depend on it."""
    device: str = "cpu"
    """cpu, cuda, cuda:1."""
    data_dir: Path | None = None
    """Where the images are, or are downloaded to. Default: the user's cache folder."""
    image_size: Count | None = None
    """Resize the images to this height and width."""
    memory_gb: Positive = 8.0
    """A folder of images that would take more stays in its files, which are decoded batch by batch."""
    run_dir: Path | None = None
    """The run's folder. Default: runs/<data>/<method>/<teachers>-s<seed>-<time>."""
    checkpoint_every: Positive = 300.0
    """Seconds between checkpoints."""
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    flow: ClassifierFlowConfig = field(default_factory=ClassifierFlowConfig)
    fitnets: FitNetsConfig = field(default_factory=FitNetsConfig)
    fsp: FspConfig = field(default_factory=FspConfig)
    mutual: MutualConfig = field(default_factory=MutualConfig)
    collaborative: CollaborativeConfig = field(default_factory=CollaborativeConfig)
    born_again: BornAgainConfig = field(default_factory=BornAgainConfig)
    growth: GrowthConfig = field(default_factory=GrowthConfig)
    own: dict[str, Any] = field(default_factory=dict)
    """Settings that the method itself declares, by name; flags of their own on the command line."""

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """`teachers` split at its commas."""
        return split_names(self.teachers)

    @property
    def method_name(self) -> str:
        """The method in force: its name, or the path of a file."""
        return self.method or ("knowledge-flow" if self.teacher_names else "kd" if self.answers else "baseline")

    @property
    def label(self) -> str:
        """What tables and folders call the method."""
        return method_label(self.method_name)
