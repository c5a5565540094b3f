"""Runs that count to ten, for tests of what a sweep does with any runs."""

import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfrl.config import validated
from kfrl.errors import UserError
from kfrl.runs.folder import RunFolder
from kfrl.runs.metrics import read_metrics
from kfrl.runs.provenance import sha256
from kfrl.sweep.domain import Domain
from kfrl.sweep.space import FixedTeacher
from kfrl.training.status import Status


@dataclass(frozen=True)
class Settings:
    name: str = ""
    steps: int = 10
    seed: int = 1
    teachers: str = ""
    teacher_sha256: tuple[str, ...] = ()
    points: float = 1.0
    does: str = "finish"
    """Or raise; or refuse; or wait at step 5, to be stopped, or for a file."""
    run_dir: Path | None = None

    @property
    def waits(self) -> bool:
        file = self.does.removeprefix("wait for ")
        return self.does == "wait" or (file != self.does and not Path(file).exists())


class Trainer:
    def __init__(self) -> None:
        self.stopped = threading.Event()

    def stop(self, number: int) -> None:
        self.stopped.set()


def status(step: int, settings: Settings) -> Status:
    return Status(step, settings.steps, 100.0, None, step * settings.points, None, "", {})


class Session:
    def __init__(self, settings: Settings, start: int) -> None:
        assert settings.run_dir is not None
        self.settings, self.start, self.trainer = settings, start, Trainer()
        self.folder = RunFolder(settings.run_dir)

    def complete(self, display: Any) -> None:
        settings, folder = self.settings, self.folder
        if settings.does == "refuse":
            raise UserError("No such thing.")
        if settings.does == "raise":
            raise RuntimeError("Something broke.")
        for step in range(self.start, settings.steps + 1):
            with folder.metrics.open("a") as file:
                file.write(f"{step},{step * settings.points}\n")
            display.update(status(step, settings))
            while step == 5 and settings.waits and not self.trainer.stopped.is_set():
                time.sleep(0.01)
                display.update(status(step, settings))
            if self.trainer.stopped.is_set():
                folder.log.write_text(f"stopped at {step}")
                return
        folder.write_evaluation({"score": settings.points, "began": self.start, "teachers": settings.teachers})


class Counting(Domain):
    settings = Settings
    subject, budget, unit = "name", "steps", "steps"
    compare_command = "kfrl compare"

    def check(self, settings: Any) -> None:
        validated(dict(settings), Settings)

    def processes(self, settings: Any) -> int:
        return 1

    def resolve(self, settings: Any) -> None:
        pass

    def find_teachers(self, name: str) -> list[FixedTeacher]:
        return [FixedTeacher(str(Path(name).absolute()), sha256(Path(name)))]

    def start(self, settings: Any) -> Any:
        session = Session(validated(dict(settings), Settings), 1)
        session.folder.path.mkdir()
        session.folder.config.write_text(json.dumps({key: str(value) for key, value in settings.items()}))
        session.folder.metrics.write_text("global_step,count\n")
        return session

    def resume(self, folder: Path) -> Any:
        settings = json.loads((folder / "config.yaml").read_text())
        steps = [step for step, _ in self.curve(folder)]
        return Session(validated(settings, Settings), int(max(steps, default=0)) + 1)

    def curve(self, folder: Path) -> list[tuple[float, float]]:
        return [(row["global_step"], row["count"]) for row in read_metrics(folder / "metrics.csv")]

    def scores(self, evaluation: Any) -> tuple[float, float | None]:
        return evaluation["score"], evaluation["score"]

    def teacher(self, folder: Path) -> str:
        return str(folder)


DOMAIN = Counting()
