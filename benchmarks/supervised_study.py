"""The studies of docs/supervised.md: Table 4 on MNIST, and Table 5's question on Fashion-MNIST.

    python benchmarks/supervised_study.py run --data-dir ~/data --out study
    kfrl supervised compare study --output study/tables

`run` trains the teachers, then every arm of a study with the first seed, then with the second, and so on; finished runs
are skipped and broken ones resumed, so that it can be stopped and started again. `list` says what there is to do.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from kfrl.checkpoint import latest_checkpoint
from kfrl.runs import RunFolder
from kfrl.supervised.config import ClassifierFlowConfig, SupervisedConfig
from kfrl.supervised.runs import reopen, resolve
from kfrl.supervised.trainer import Silent, Trainer


@dataclass(frozen=True)
class Study:
    """What is trained where."""

    what: tyro.conf.Positional[Literal["run", "list"]]
    out: Path = Path("study")
    """The runs, a folder each."""
    data_dir: Path | None = None
    """Where the images are. Default: the user's cache folder."""
    seeds: int = 3
    teacher_epochs: int = 10
    """Of the MNIST teacher."""
    table4_epochs: int = 10
    """Of its students."""
    transfer_images: int = 2000
    """What a student has of Fashion-MNIST, validation images included; teachers have all of their images."""
    transfer_epochs: int = 40
    """Of such a student."""

    def teachers(self) -> Iterator[SupervisedConfig]:
        """Hinton's large net on MNIST; an expert, a half-expert and a non-expert for Fashion-MNIST."""
        yield self._config(
            "teachers/mnist-1200",
            data="mnist",
            net="mlp-1200-1200",
            augment="shift",
            pad=2,
            epochs=self.teacher_epochs,
        )
        for data in ("fashion-mnist", "fashion-mnist-half", "mnist"):
            # A seed that no student has: the expert is another net than the baseline.
            yield self._config(f"teachers/{data}", data=data, net="mnist-mlp", epochs=5, seed=100)

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

    def table4(self, seed: int) -> Iterator[SupervisedConfig]:
        """MNIST and MNIST without the digit 3, alone and from the large net."""
        flow = ClassifierFlowConfig(soft_targets=True)
        large = str(self.out / "teachers/mnist-1200")
        for data in ("mnist", "mnist-no-3"):
            plain = self._config(
                f"{data}/alone-s{seed}", data=data, net="mlp-800-800", epochs=self.table4_epochs, seed=seed
            )
            taught = replace(plain, teachers=large)
            yield plain
            yield replace(taught, method="kd", run_dir=self.out / f"{data}/kd-s{seed}")
            yield replace(taught, method="knowledge-flow", flow=flow, run_dir=self.out / f"{data}/flow-s{seed}")

    def _config(self, folder: str, **settings: object) -> SupervisedConfig:
        return SupervisedConfig(data_dir=self.data_dir, run_dir=self.out / folder, **settings)  # type: ignore[arg-type]

    def all(self) -> Iterator[SupervisedConfig]:
        """Teachers first, then each study seed by seed."""
        yield from self.teachers()
        for students in (self.transfer, self.table4):
            for seed in range(1, self.seeds + 1):
                yield from students(seed)


def run(config: SupervisedConfig) -> str:
    """Train unless it is done; returns what came of it."""
    assert config.run_dir is not None
    folder = RunFolder(config.run_dir)
    if folder.evaluation.exists():
        return "done before"
    started = time.process_time()
    broken = any(folder.checkpoints.glob("*.safetensors"))
    made = reopen(folder.path) if broken else resolve(config)
    if not broken:
        made.write_config()
    trainer = Trainer(made, Silent(), latest_checkpoint(folder.checkpoints) if broken else None)
    outcome = trainer.train()
    if outcome.failure is not None:
        return outcome.failure
    if outcome.stopped_by is not None:
        sys.exit(128 + outcome.stopped_by)
    error = trainer.finish()["test"]["error_percent"]
    return f"{error:.2f} % error, {time.process_time() - started:.0f} s of processor time"


def main(study: Annotated[Study, tyro.conf.arg(name="")]) -> None:
    """Run or list the study."""
    for config in study.all():
        result = run(config) if study.what == "run" else ""
        print(f"{config.run_dir}: {config.method_name} on {config.data}, {config.epochs} epochs. {result}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Study, description=__doc__))
