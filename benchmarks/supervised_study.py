"""The studies of docs/supervised.md: Table 4 on MNIST, Table 5's question on Fashion-MNIST, and Table 3's on photos.

    python benchmarks/supervised_study.py run --data-dir ~/data --out study
    python benchmarks/supervised_study.py run --studies photos --photos cifar-10.tar.gz tiny-40.tar.gz --out study
    kfrl supervised compare study --output study/tables
    python benchmarks/supervised_study.py cost --images cifar-10.tar.gz

`run` trains the teachers, then every arm of a study with the first seed, then with the second, and so on. Finished runs
are skipped and interrupted ones resumed, so that it can be stopped and started again. `list` prints the runs. `cost`
estimates the CPU time of the papers' settings from a few updates of each on the images of a folder, with untrained nets
as teachers.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from kfrl.config import load_config
from kfrl.nets.images.registry import make_net
from kfrl.runs.folder import RunFolder
from kfrl.supervised import resume, train
from kfrl.supervised.classifiers import Card, save_classifier
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.data.batches import Normalisation
from kfrl.supervised.data.sets import SETS
from kfrl.supervised.run import resolve
from kfrl.supervised.trainer import Trainer
from kfrl.training.session import Silent, TrainingError

CONFIGS = Path("configs/supervised")
TEACHER_SEED = 100
"""No student has this seed, so that the expert is another net than the baseline."""


@dataclass(frozen=True)
class Study:
    """Options of the study."""

    what: tyro.conf.Positional[Literal["run", "list", "cost"]]
    out: Path = Path("study")
    """The folder of the runs."""
    studies: tuple[Literal["transfer", "table4", "photos"], ...] = ("transfer", "table4")
    """What to run."""
    data_dir: Path | None = None
    """The folder of the images. Default: the user's cache folder."""
    photos: tuple[Path, Path] | None = None
    """photos: two folders or archives of images by class; each teaches the other."""
    photo_images: int = 5000
    """Images of a student of photos, including validation images; teachers have all of their images."""
    photo_epochs: int = 20
    """Epochs of such a student."""
    photo_teacher_epochs: int = 10
    """Epochs of such a teacher."""
    seeds: int = 3
    teacher_epochs: int = 40
    """Epochs of the MNIST teacher."""
    table4_epochs: int = 10
    """Epochs of its students."""
    transfer_images: int = 2000
    """Images of Fashion-MNIST for a student, including validation images; teachers have all of their images."""
    transfer_epochs: int = 40
    """Epochs of such a student."""
    images: Path | None = None
    """cost: a folder or an archive of images by class."""
    configs: tuple[str, ...] = ("reproduction", "stl-10", "collaborative", "cifar-10")
    """cost: files of configs/supervised."""
    batch_size: int | None = None
    """cost: batch size instead of the config's."""
    updates: int = 10
    """cost: number of timed updates, after one warm-up update."""

    def transfer_teachers(self) -> Iterator[SupervisedConfig]:
        """An expert, a half-expert and a non-expert for Fashion-MNIST."""
        for data in ("fashion-mnist", "fashion-mnist-half", "mnist"):
            yield self._config(f"teachers/{data}", data=data, net="mnist-mlp", epochs=5, seed=TEACHER_SEED)

    def table4_teachers(self) -> Iterator[SupervisedConfig]:
        """Hinton's large net on MNIST."""
        yield self._config(
            "teachers/mnist-1200",
            data="mnist",
            net="mlp-1200-1200",
            augment="shift",
            pad=2,
            epochs=self.teacher_epochs,
        )

    def photos_teachers(self) -> Iterator[SupervisedConfig]:
        """A ResNet-20 on all images of each set."""
        for data in self._photos():
            folder = f"teachers/{_short(data)}"
            yield self._photo(folder, data, epochs=self.photo_teacher_epochs, seed=TEACHER_SEED)

    def transfer(self, seed: int) -> Iterator[SupervisedConfig]:
        """Fashion-MNIST, alone and from every teacher."""
        plain = self._config(
            f"fashion/alone-s{seed}",
            data="fashion-mnist",
            train_images=self.transfer_images,
            net="mnist-mlp",
            epochs=self.transfer_epochs,
            seed=seed,
        )
        yield plain
        for method in ("fine-tune", "knowledge-flow"):
            for teacher in ("fashion-mnist", "fashion-mnist-half", "mnist"):
                folder = self.out / f"fashion/{method}-{teacher}-s{seed}"
                yield replace(plain, method=method, teachers=str(self.out / "teachers" / teacher), run_dir=folder)
        yield replace(
            plain,
            method="knowledge-flow",
            teachers=str(self.out / "teachers/fashion-mnist"),
            methods={"knowledge-flow": {"soft_targets": True}},
            run_dir=self.out / f"fashion/knowledge-flow-soft-targets-s{seed}",
        )

    def table4(self, seed: int) -> Iterator[SupervisedConfig]:
        """MNIST and MNIST without the digit 3, alone and from the large net."""
        flow = {"soft_targets": True}
        large = str(self.out / "teachers/mnist-1200")
        for data in ("mnist", "mnist-no-3"):
            plain = self._config(
                f"{data}/alone-s{seed}", data=data, net="mlp-800-800", epochs=self.table4_epochs, seed=seed
            )
            taught = replace(plain, teachers=large)
            yield plain
            yield replace(taught, method="kd", run_dir=self.out / f"{data}/kd-s{seed}")
            yield replace(
                taught,
                method="knowledge-flow",
                methods={"knowledge-flow": flow},
                run_dir=self.out / f"{data}/flow-s{seed}",
            )

    def photos_students(self, seed: int) -> Iterator[SupervisedConfig]:
        """A ResNet-20 on a part of each set, alone and from the other set's teacher."""
        for data, other in zip(self._photos(), reversed(self._photos()), strict=True):
            name, teacher = _short(data), str(self.out / "teachers" / _short(other))
            plain = self._photo(
                f"{name}/alone-s{seed}", data, train_images=self.photo_images, epochs=self.photo_epochs, seed=seed
            )
            yield plain
            for method in ("fine-tune", "knowledge-flow"):
                yield replace(plain, method=method, teachers=teacher, run_dir=self.out / f"{name}/{method}-s{seed}")

    def _photos(self) -> tuple[Path, Path]:
        if self.photos is None:
            sys.exit("photos needs --photos FIRST SECOND, two folders or archives of images by class")
        return self.photos

    def _photo(self, folder: str, data: Path, **settings: Any) -> SupervisedConfig:
        return self._config(folder, data=str(data), image_size=32, net="resnet-20", **settings)

    def _config(self, folder: str, **settings: Any) -> SupervisedConfig:
        return SupervisedConfig(data_dir=self.data_dir, run_dir=self.out / folder, **settings)

    def all(self) -> Iterator[SupervisedConfig]:
        """All runs, study by study: its teachers, then its students seed by seed."""
        plans = {
            "transfer": (self.transfer_teachers, self.transfer),
            "table4": (self.table4_teachers, self.table4),
            "photos": (self.photos_teachers, self.photos_students),
        }
        for study in self.studies:
            teachers, students = plans[study]
            yield from teachers()
            for seed in range(1, self.seeds + 1):
                yield from students(seed)


def _short(path: Path) -> str:
    """`cifar-10-jpeg` for `cifar-10-jpeg.tar.gz`."""
    return path.name.partition(".")[0]


def run(config: SupervisedConfig) -> str:
    """Train unless it is done; returns the result as text."""
    assert config.run_dir is not None
    folder = RunFolder(config.run_dir)
    if folder.evaluation.exists():
        return "done before"
    started = time.process_time()
    started_before = any(folder.checkpoints.glob("*.safetensors"))
    try:
        result = resume(folder.path) if started_before else train(config)
    except TrainingError as failure:
        return str(failure)
    if result.stopped_by is not None:
        sys.exit(128 + result.stopped_by)
    error = result.evaluation["test"]["error_percent"]
    return f"{error:.2f} % error, {time.process_time() - started:.0f} s of processor time"


def cost(study: Study, name: str) -> None:
    """Time updates of a config, first with the student alone, then with teachers."""
    assert study.images is not None, "--images"
    config = load_config(CONFIGS / f"{name}.yaml", SupervisedConfig)
    known = SETS[config.data]
    with tempfile.TemporaryDirectory() as folder:
        paper = replace(
            config,
            data=str(study.images),
            image_size=known.shape[1],
            batch_size=study.batch_size or config.batch_size,
            run_dir=Path(folder) / "run",
            augment=known.augment if config.augment == "auto" else config.augment,
        )
        alone = resolve(replace(paper, teachers="", method="baseline"))
        teachers = [Path(folder) / f"{teacher}.safetensors" for teacher in config.teacher_names]
        for path in teachers:
            net = make_net(paper.net or known.net, known.shape, len(alone.data.classes))
            plain = Normalisation.none(known.shape[0])
            card = Card(path.stem, alone.data.classes, net.arch, known.shape, plain.mean, plain.std)
            save_classifier(path, net, card)
        for run_ in (alone, resolve(replace(paper, teachers=",".join(map(str, teachers))))):
            trainer = Trainer(run_, Silent())
            batches = trainer.images.epoch(1, 0)
            trainer.update(next(batches))
            started, images = time.process_time(), 0
            for _, batch in zip(range(study.updates), batches, strict=False):
                trainer.update(batch)
                images += len(batch.labels)
            each = (time.process_time() - started) / images
            images_of_epoch = round(known.counts[0] * (1 - config.validation))
            epoch = each * images_of_epoch
            print(
                f"{name}, {run_.config.method_name}, {run_.config.net}, batch {paper.batch_size}: "
                f"{1000 * each:.1f} ms of processor time an image (from {images}), {epoch / 3600:.2f} h an epoch of "
                f"{images_of_epoch:,} images, {config.epochs * epoch / 86400:.1f} days for {config.epochs} epochs",
                flush=True,
            )


def main(study: Annotated[Study, tyro.conf.arg(name="")]) -> None:
    """Run or list the study, or measure costs."""
    if study.what == "cost":
        torch.set_num_threads(1)
        for name in study.configs:
            cost(study, name)
        return
    for config in study.all():
        result = run(config) if study.what == "run" else ""
        print(f"{config.run_dir}: {config.method_name} on {config.data}, {config.epochs} epochs. {result}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Study, description=__doc__))
