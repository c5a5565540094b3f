"""A classifier's run: a config resolved to data, method, teachers and folder."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kfrl.devices import check_device
from kfrl.errors import UserError
from kfrl.nets import arch_of
from kfrl.nets.images.registry import arch_of as arch_named
from kfrl.registry import exact_method
from kfrl.runs.checkpoint import Checkpoint
from kfrl.runs.folder import RUNS, RunFolder
from kfrl.runs.loggers import check_loggers
from kfrl.runs.provenance import check_pinned, commit, sha256
from kfrl.supervised.answers import read_answers
from kfrl.supervised.classifiers import Card, Teacher, save_classifier
from kfrl.supervised.config import SupervisedConfig, check_used
from kfrl.supervised.data.batches import Images, Loader, Normalisation
from kfrl.supervised.data.sets import Data, absolute, check_memory, load_data
from kfrl.supervised.methods import get_method, method_names
from kfrl.supervised.methods.base import AnyMethod, Task
from kfrl.supervised.teachers import adapt, load_classifiers
from kfrl.training.method import check_settings, written_settings
from kfrl.training.ranks import join, ranks
from kfrl.training.run import MethodRun


@dataclass(frozen=True)
class Run(MethodRun[AnyMethod]):
    """A classifier's run: a config, with its data and teachers loaded. Nothing is written yet."""

    config: SupervisedConfig
    data: Data
    task: Task
    train: Images
    validation: Images
    teachers: tuple[Teacher, ...]
    folder: RunFolder

    def method(self) -> AnyMethod:
        """A fresh instance of the run's method."""
        return get_method(self.config.method_name)(self.config)

    def build(self, method: AnyMethod) -> nn.Module:
        """A new module that trains, on the run's device."""
        net: nn.Module = method.build(self.task, self.teachers)
        return net.to(torch.device(self.config.device))

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
        files, stored = [config.answers] if config.answers else [], state.get("answers_sha256", ())
        check_pinned(files, config.answers_sha256, stored, who, kind="answers")

    def loader(self, images: Images, channels_last: bool, augmented: bool = False) -> Loader:
        """Batches of some of the data's images, on the run's device."""
        kind = self.config.augment if augmented else "none"
        return Loader(
            images.to(torch.device(self.config.device)),
            self.config.batch_size,
            self.task.normalisation,
            channels_last,
            self.config.pad if kind != "none" else 0,
            kind == "crop-flip",
            ranks(),
        )

    def save_student(
        self, net: nn.Module, name: str, epochs: int, validation: float | None, test: dict[str, Any], caveat: str
    ) -> None:
        """Write the student alone, with the `name` of its net in its card; it can teach another run."""
        card = Card(
            data=self.data.name,
            classes=self.task.classes,
            arch=arch_of(net),
            input_shape=self.task.shape,
            mean=self.task.normalisation.mean,
            std=self.task.normalisation.std,
            net=name,
            method=self.config.label,
            epochs=epochs,
            seed=self.config.seed,
            teachers=tuple(teacher.name for teacher in self.teachers),
            teacher_sha256=self.config.teacher_sha256,
            validation_accuracy=validation,
            caveat=caveat,
            evaluation=test,
            commit=commit(),
        )
        save_classifier(self.folder.student, net, card)


def resolve(config: SupervisedConfig) -> Run:
    """Look up the data, the method and the teachers, and check that they fit together.

    Raises:
        UserError: one of them does not exist, they do not fit, or a setting has no effect. Nothing has been written.
    """
    if not config.data:
        raise UserError("Which images? Give --data NAME, e.g. --data mnist; `kfrl supervised data` lists them.")
    check_used(config)
    method = get_method(config.method_name)
    method.check_used(config)
    check_memory(config.memory_gb, config.data, getattr(method.read_settings(config), "old_data", ""))
    return _resolve(config)


def _resolve(config: SupervisedConfig) -> Run:
    check_device(config.device)
    check_loggers(config.log_to)
    together = join(config.device)
    method = get_method(config.method_name)
    config = method.with_files(config)
    check_settings(config, method_names(), get_method)
    method.check_answers(config.method_name, config.answers is not None)
    if config.answers is None:
        method.check_teachers(config.method_name, len(config.teacher_names))
        loaded = load_classifiers(config.teacher_names, RUNS)
        _check_pinned(loaded, config)
    if config.net is not None:
        arch_named(config.net)
    # Last, because it may be a long download.
    if not together.first:
        together.wait()
    data = load_data(config.data, config.data_dir, config.image_size, 1e9 * config.memory_gb)
    if together.first:
        together.wait()
    if config.answers is not None:
        loaded = _answerers(config, data, config.answers)
        method.check_teachers(config.method_name, len(loaded))
        _check_pinned(loaded, config)
        path = config.answers.expanduser().absolute()
        found = (sha256(path),)
        check_pinned([path], found, config.answers_sha256, kind="answers")
        config = replace(config, answers=path, answers_sha256=found)
    augment = data.augment if config.augment == "auto" else config.augment
    if augment == "none" and config.pad != SupervisedConfig.pad:
        raise UserError(
            f"--pad {config.pad} is the padding of --augment shift and crop-flip, and this run has no augmentation. "
            "Give --augment shift, or leave --pad out."
        )
    train, validation, rows = _divide(data, config)
    _check_shares(min(config.batch_size, len(train)), together.world)
    normalisation = method.normalisation(Normalisation.of(train.sample()), loaded)
    teachers = tuple(_ready(teacher, data, normalisation, rows, torch.device(config.device)) for teacher in loaded)
    config = replace(
        config,
        data=absolute(config.data),
        data_dir=config.data_dir and config.data_dir.expanduser().absolute(),
        teachers=",".join(str(teacher.path.resolve()) for teacher in teachers),
        teacher_sha256=tuple(teacher.sha256 for teacher in teachers),
        method=exact_method(config.method_name),
        methods=method.resolve_settings(config, method_names()),
        net=config.net or method.default_net(data.net, teachers),
        augment=augment,
        keep=config.kept,
    )
    path = config.run_dir or _default_folder(config, data.name, teachers)
    folder = RunFolder(Path(together.text_of_the_first(str(path))))
    config = replace(config, run_dir=folder.path)
    assert config.net is not None
    task = Task(data.name, data.classes, data.shape, normalisation, config.net)
    run = Run(config, data, task, train, validation, teachers, folder)
    try:
        run.built()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"The student {config.net} and its teachers do not fit together: {error}") from None
    return run


def _check_pinned(teachers: Sequence[Teacher], config: SupervisedConfig) -> None:
    checksums = [teacher.sha256 for teacher in teachers]
    check_pinned([teacher.path for teacher in teachers], checksums, config.teacher_sha256)


def _answerers(config: SupervisedConfig, data: Data, path: Path) -> tuple[Teacher, ...]:
    """The teachers with stored answers; teachers that the config names have to be among them."""
    if (data.augment if config.augment == "auto" else config.augment) != "none":
        raise UserError("--answers are for images without augmentation, and this run has it. Give --augment none.")
    stored = read_answers(path.expanduser(), data)
    asked = {teacher.sha256: teacher.name for teacher in stored}
    if config.teacher_names not in ((), tuple(str(teacher.path) for teacher in stored)):
        for teacher in load_classifiers(config.teacher_names, RUNS):
            if teacher.sha256 not in asked:
                raise UserError(
                    f"{path} has no answers of {teacher.path} (SHA-256 {teacher.sha256}), only of "
                    f"{', '.join(f'{name} ({checksum})' for checksum, name in asked.items())}. Collect them: "
                    f"kfrl supervised collect --data {data.name} --teachers {teacher.path} --output FILE"
                )
    return stored


def _ready(teacher: Teacher, data: Data, normalisation: Normalisation, rows: Tensor, device: torch.device) -> Teacher:
    """A teacher that accepts the student's images, or has stored answers for the training images `rows`."""
    if teacher.answers is not None:
        return replace(teacher, answers=teacher.answers[rows].to(device))
    adapted = adapt(teacher, data.shape, normalisation)
    adapted.net.to(device)
    return adapted


def _divide(data: Data, config: SupervisedConfig) -> tuple[Images, Images, Tensor]:
    """Training images, validation images (the data set's own if it has some), and the rows of the former."""
    images, count = data.train, config.train_images
    classes = len(set(images.labels.tolist()))
    if count is not None and not classes <= count <= len(images):
        raise UserError(
            f"--train-images {count:,} is not possible: there are {len(images):,} training images in {classes} "
            f"classes. Give {classes} to {len(images):,}."
        )
    if data.validation is not None and config.validation:
        rows = data.split(0.0, count)[0]
        return images.take(rows), data.validation, rows
    rows, kept_back = data.split(config.validation, count)
    if config.validation and not len(kept_back):
        raise UserError(
            f"--validation {config.validation:g} of {len(rows):,} training images in {classes} classes gives no image "
            f"of any class: a class needs {math.ceil(0.5 / config.validation + 1e-9)} images. Give a larger share, or "
            "--validation 0 for no validation."
        )
    return images.take(rows), images.take(kept_back), rows


def _check_shares(batch: int, processes: int) -> None:
    if batch % processes:
        raise UserError(
            f"A batch of {batch} images cannot be shared evenly by {processes} processes. Give a --batch-size that is "
            f"a multiple of {processes}, e.g. {processes * max(1, batch // processes)}, and not above the number of "
            "training images."
        )


def _default_folder(config: SupervisedConfig, data: str, teachers: Sequence[Teacher]) -> Path:
    names = "+".join(teacher.name for teacher in teachers) or "none"
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return RUNS / data / config.label / f"{names}-s{config.seed}-{stamp}"


def reopen(path: Path) -> Run:
    """The run in an existing folder.

    Raises:
        UserError: not a run's folder, or something that the run needs is missing.
    """
    folder = RunFolder.of_run(path)
    config = folder.read_config(SupervisedConfig)
    method = get_method(config.method_name)
    with folder.naming_version():
        methods = written_settings(config, method)
    # Without the checks for unused settings, which an earlier version may have accepted.
    return _resolve(replace(config, run_dir=path, methods=methods))
