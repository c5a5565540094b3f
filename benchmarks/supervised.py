"""Images per second of kfrl's supervised methods and of a plain PyTorch loop: docs/supervised.md.

    python benchmarks/supervised.py
    python benchmarks/supervised.py --pair mlp --device cuda

The contestants take turns, so that other load on the machine affects all of them; ratios are medians over the rounds.
On the CPU, processor time with one thread is measured. The plain loop has normalised float images in memory, a
teacher under `no_grad`, the sum of both losses, `torch.optim.SGD`, and PyTorch's defaults otherwise: no
`channels_last`, and float32 also on a GPU, where kfrl computes in bfloat16. torchdistill itself is not measured,
because it needs torchvision, whose wheel cannot be imported with a CPU build of torch.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
import torch.nn.functional as F
import tyro
from torch import nn

from kfrl.nets.images.registry import make_net
from kfrl.runs.folder import RunFolder
from kfrl.supervised.classifiers import Card, Teacher
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.data.batches import Images, Normalisation
from kfrl.supervised.data.sets import Data
from kfrl.supervised.methods.base import Task
from kfrl.supervised.run import Run
from kfrl.supervised.trainer import Trainer
from kfrl.training.session import Silent

PAIRS = {
    "mlp": ("mlp-1200-1200", "mlp-800-800", (1, 28, 28), {}),
    "mlp, low-rank Q": ("mlp-1200-1200", "mlp-800-800", (1, 28, 28), {"transform": "low-rank"}),
    "resnet": ("resnet-20", "resnet-20", (3, 32, 32), {}),
    "wrn": ("wrn-40-2", "wrn-16-2", (3, 32, 32), {}),
}
"""Pair -> teacher, student, shape of the images, settings of the links."""
CLASSES = tuple("0123456789")


@dataclass(frozen=True)
class Flags:
    """Options of the measurement."""

    pair: Literal["mlp", "mlp, low-rank Q", "resnet", "wrn", "all"] = "all"
    rounds: int = 5
    updates: int = 10
    """Updates of each contestant in a round."""
    batch_size: int = 128
    device: str = "cpu"


def contestants(flags: Flags, pair: str, folder: Path) -> dict[str, Callable[[], None]]:
    """Name -> function that makes one update."""
    teacher_net, student_net, shape, flow = PAIRS[pair]
    pixels = torch.randint(0, 256, (4 * flags.batch_size, *shape), dtype=torch.uint8)
    images = Images(pixels, torch.randint(0, 10, (len(pixels),)))
    teacher = _teacher(make_net(teacher_net, shape, 10), teacher_net, shape, flags.device)
    config = SupervisedConfig(
        data="noise", net=student_net, batch_size=flags.batch_size, device=flags.device, augment="none", epochs=10**6
    )
    arms = {
        "baseline": replace(config, method="baseline"),
        "kd": replace(config, method="kd"),
        "knowledge-flow": replace(config, method="knowledge-flow", methods={"knowledge-flow": flow}),
        "knowledge-flow, independent": replace(
            config,
            method="knowledge-flow",
            methods={"knowledge-flow": {**flow, "independence_at": 0.0, "handover_start": 0.0}},
        ),
    }
    # A copy, because a run lays the weights of its teachers out anew.
    plain = _Plain(images, copy.deepcopy(teacher.net), make_net(student_net, shape, 10), config)
    made = {name: _update(_run(arm, images, teacher, folder / name)) for name, arm in arms.items()}
    return made | {"plain baseline": plain.baseline, "plain kd": plain.kd, "teacher forward": plain.ask_teacher}


def _teacher(net: nn.Module, name: str, shape: tuple[int, int, int], device: str) -> Teacher:
    own = Normalisation.none(shape[0])
    card = Card("noise", CLASSES, {}, shape, own.mean, own.std, net=name)
    return Teacher("noise", net.eval().requires_grad_(False).to(device), card, Path("nowhere"))


def _run(config: SupervisedConfig, images: Images, teacher: Teacher, folder: Path) -> Run:
    task = Task("noise", CLASSES, images.shape, Normalisation.none(images.shape[0]), config.net or "")
    data = Data("noise", "noise", CLASSES, images, images, "none", task.net)
    return Run(config, data, task, images, images, (teacher,), RunFolder(folder))


def _update(run: Run) -> Callable[[], None]:
    trainer = Trainer(run, Silent())

    def batches() -> Iterator[None]:
        epoch = 0
        while True:
            for batch in trainer.images.epoch(1, epoch):
                trainer.update(batch)
                yield
            epoch += 1

    endless = batches()
    return lambda: next(endless)


class _Plain:
    """The plain loops."""

    def __init__(self, images: Images, teacher: nn.Module, student: nn.Module, config: SupervisedConfig) -> None:
        self.device = torch.device(config.device)
        self.images, self.labels = (images.pixels / 255).to(self.device), images.labels.to(self.device)
        self.teacher, self.student = teacher, student.to(self.device)
        self.size = config.batch_size
        self.optimiser = torch.optim.SGD(
            student.parameters(), config.lr, momentum=0.9, nesterov=True, weight_decay=config.weight_decay
        )

    def _batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.randint(len(self.labels), (self.size,), device=self.device)
        return self.images[rows], self.labels[rows]

    def _step(self, loss: torch.Tensor) -> None:
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()

    def baseline(self) -> None:
        images, labels = self._batch()
        self._step(F.cross_entropy(self.student(images), labels))

    def kd(self) -> None:
        images, labels = self._batch()
        with torch.no_grad():
            targets = (self.teacher(images) / 4).softmax(1)
        logits = self.student(images)
        soft = F.kl_div((logits / 4).log_softmax(1), targets, reduction="batchmean") * 16
        self._step(0.1 * F.cross_entropy(logits, labels) + 0.9 * soft)

    @torch.no_grad()
    def ask_teacher(self) -> None:
        self.teacher(self._batch()[0])


def seconds(update: Callable[[], None], count: int, device: str) -> float:
    """Of one update."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    started = clock()
    for _ in range(count):
        update()
    if device != "cpu":
        torch.cuda.synchronize(device)
    return (clock() - started) / count


def main(flags: Flags) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    for pair in PAIRS if flags.pair == "all" else (flags.pair,):
        with TemporaryDirectory() as folder:
            updates = contestants(flags, pair, Path(folder))
            for update in updates.values():
                seconds(update, 2, flags.device)
            rounds = [
                {name: seconds(update, flags.updates, flags.device) for name, update in updates.items()}
                for _ in range(flags.rounds)
            ]
        teacher, student, shape, _ = PAIRS[pair]
        print(f"\n{pair}: teacher {teacher}, student {student}, {'x'.join(map(str, shape))}, batch {flags.batch_size}")
        for name in updates:
            rate = flags.batch_size / statistics.median(taken[name] for taken in rounds)
            print(f"  {name:30} {rate:10,.0f} images/s")
        for title, ratio in _ratios(rounds).items():
            print(f"  {title:60} {ratio:.2f}")


def _ratios(rounds: list[dict[str, float]]) -> dict[str, float]:
    def median(ratio: Callable[[dict[str, float]], float]) -> float:
        return statistics.median(map(ratio, rounds))

    def needed(taken: dict[str, float]) -> float:
        return taken["plain baseline"] + taken["teacher forward"]

    return {
        "kd: rate over the plain loop's": median(lambda taken: taken["plain kd"] / taken["kd"]),
        "baseline: rate over the plain loop's": median(lambda taken: taken["plain baseline"] / taken["baseline"]),
        "knowledge-flow: cost over student and teacher": median(lambda taken: taken["knowledge-flow"] / needed(taken)),
        "the same once independent, over the student alone": median(
            lambda taken: taken["knowledge-flow, independent"] / taken["plain baseline"]
        ),
    }


if __name__ == "__main__":
    main(tyro.cli(Flags, description=__doc__))
