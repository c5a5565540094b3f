"""Every setting of a classifier's training. Imports no torch, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Lt

from kfrl.config import Count, Fraction, NonNegative, Positive, split_names, with_former_groups
from kfrl.errors import UserError
from kfrl.registry import method_label

Augment = Literal["auto", "none", "shift", "crop-flip"]
Share = Annotated[float, Ge(0.0), Lt(1.0)]


@dataclass(frozen=True)
class SupervisedConfig:
    """Train an image classifier, alone or with frozen teachers."""

    data: str = ""
    """The data set: mnist, emnist-letters, fashion-mnist, cifar-10, ...; NAME-no-CLASS leaves one class out of
    the training images, NAME-half keeps the first half of the classes, NAME-other-half the others; or a folder of
    images by class."""
    teachers: str = ""
    """Teachers, comma-separated: the data set of one of your runs, or the path of a run."""
    teacher_sha256: tuple[str, ...] = ()
    """SHA-256 of each teacher's file, in order, as a run's config.yaml has them; other files are refused. Empty: no
    check."""
    answers: Path | None = None
    """A file of `kfrl supervised collect`: kd and mimic learn from it without the teachers, with --augment none."""
    answers_sha256: tuple[str, ...] = ()
    """SHA-256 of the file of --answers, as a run's config.yaml has it; another file is refused. Empty: no check."""
    method: str | None = None
    """The method, see docs/supervised.md, or a file of your own: path/to/file.py. Default: knowledge-flow with
    teachers, kd with --answers alone, baseline without either."""
    net: str | None = None
    """The student's net: mlp-800-800, cifar-conv-128, resnet-20, densenet-100-24, ... Default: by data or method."""
    train_images: Count | None = None
    """Number of training images, the same share of every class, up to rounding, and the same ones for every seed.
    Default: all."""
    epochs: Count = 20
    """Passes over the training images."""
    batch_size: Count = 128
    """Images in an update."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """sgd has Nesterov momentum."""
    lr: Positive = 0.05
    """Initial learning rate."""
    schedule: Literal["cosine", "steps", "constant"] = "cosine"
    """How the learning rate falls: to 0 along a cosine, or to a tenth at each of --milestones."""
    milestones: tuple[Fraction, ...] = (0.5, 0.75)
    """steps: shares of the epochs at which the learning rate falls."""
    momentum: Share = 0.9
    """Momentum of sgd."""
    weight_decay: NonNegative = 1e-4
    """L2 penalty on all weights."""
    augment: Augment = "auto"
    """shift: a random crop after padding; crop-flip: shift and a random flip; auto: usual for the data set."""
    pad: Count = 4
    """Pixels of padding before the crop."""
    validation: Share = 0.1
    """Share of the training images, the same of every class, that is held back for validation. A folder with val/ and
    test/ has validation images of its own, which are used instead, unless this is 0."""
    keep: Literal["best", "last"] | None = None
    """Which epoch's student is kept: the best on the validation images, or the last. Default: best, or last with
    --validation 0."""
    seed: Annotated[int, Ge(0)] = 1
    """Seed of the initial weights and of the order of the images. The validation images do not depend on it."""
    device: str = "cpu"
    """cpu, cuda, cuda:1."""
    data_dir: Path | None = None
    """Where the images are, or are downloaded to. Default: the user's cache folder."""
    image_size: Count | None = None
    """Resize the images to this height and width."""
    memory_gb: Positive = 8.0
    """A folder of images that needs more memory is not loaded; its files are decoded batch by batch."""
    run_dir: Path | None = None
    """The run's folder. Default: runs/<data>/<method>/<teachers>-s<seed>-<time>."""
    log_to: str = ""
    """wandb, mlflow or both, comma-separated: also log the rows of metrics.csv there."""
    checkpoint_every: Positive = 300.0
    """Seconds between checkpoints."""
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of methods, by the method's name; with `--method NAME` they are flags."""

    @staticmethod
    def renew(values: dict[str, Any]) -> dict[str, Any]:
        """Convert the settings of earlier versions to the present names."""
        own = {"own": (method_label(values.get("method") or ""),)} if values.get("own") else {"own": ()}
        return with_former_groups(values, {**_FORMER_GROUPS, **own})

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """`teachers` split at its commas."""
        return split_names(self.teachers)

    @property
    def kept(self) -> Literal["best", "last"]:
        """`keep`, with the default filled in; without validation images it is the last epoch, whatever a file says."""
        return (self.keep or "best") if self.validation else "last"

    @property
    def method_name(self) -> str:
        """The method's name or the path of its file, with the default filled in."""
        return self.method or ("knowledge-flow" if self.teacher_names else "kd" if self.answers else "baseline")

    @property
    def label(self) -> str:
        """The method's name in tables and folder names."""
        return method_label(self.method_name)


def check_used(config: SupervisedConfig) -> None:
    """Refuse settings that have no effect beside the others.

    Raises:
        UserError: the message says what the setting needs.
    """
    if config.schedule != "steps" and config.milestones != SupervisedConfig.milestones:
        raise UserError(
            f"--milestones are for --schedule steps, got --schedule {config.schedule}. Give --schedule steps, or leave "
            "--milestones out."
        )
    if config.optimizer != "sgd" and config.momentum != SupervisedConfig.momentum:
        raise UserError(
            f"--momentum {config.momentum:g} is for --optimizer sgd, got --optimizer {config.optimizer}. Leave it out."
        )
    if config.keep == "best" and not config.validation:
        raise UserError(
            "--keep best chooses the epoch on validation images, and --validation 0 keeps none. Give --keep last, or a "
            "share, e.g. --validation 0.1."
        )


_FORMER_GROUPS = {
    "flow": ("knowledge-flow",),
    "distillation": ("knowledge-flow", "kd", "fitnets"),
    "fitnets": ("fitnets",),
    "fsp": ("fsp",),
    "mutual": ("mutual",),
    "collaborative": ("collaborative",),
    "born_again": ("born-again",),
    "growth": ("anti-distillation",),
}
"""Groups of settings in the files of earlier versions -> the methods that have them now."""
