"""The parent of an A3C run: starts the workers and watches over them."""

from __future__ import annotations

import multiprocessing.connection
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import torch
from torch import Tensor

from agents.a3c.worker import Job, run_worker
from agents.processes import process_context
from agents.training import Trainer
from agents.update import Report


class A3CTrainer(Trainer):
    """Hogwild: worker processes on one model in shared memory."""

    def place(self) -> None:
        """Put the teachers where every worker reads them; the net follows as a `SharedModel`."""
        for teacher in self.run.teachers:
            teacher.net.share_memory()

    def learn(self) -> None:
        """Run the workers until the steps are done or the run is `stopping`."""
        with self._processes() as workers:
            self._watch(workers)
            self._stop(workers)

    @contextmanager
    def _processes(self) -> Iterator[dict[Connection, BaseProcess]]:
        context = process_context()
        run = self.run
        workers: dict[Connection, BaseProcess] = {}
        try:
            for rank in range(run.config.shape.workers):
                ours, theirs = context.Pipe(duplex=False)
                job = Job(rank, run.config, run.protocol, run.spec, run.teachers, self.shared, self.session)
                process: BaseProcess = context.Process(
                    target=run_worker, args=(job, theirs), daemon=True, name=f"worker {rank}"
                )
                process.start()
                theirs.close()
                workers[ours] = process
            yield workers
        finally:
            self.shared.stop[0] = 1
            for process in workers.values():
                if process.is_alive():
                    process.kill()
                process.join()

    def _watch(self, workers: dict[Connection, BaseProcess]) -> None:
        """Take reports until all workers are done or something ends the run."""
        watchdog = _Watchdog(self.shared.steps, self.run.config.worker_timeout)
        running = set(workers)
        while running and not self.stopping:
            for ready in multiprocessing.connection.wait(list(running), timeout=0.2):
                assert isinstance(ready, Connection)
                if not self._take_report(ready, workers[ready]):
                    running.discard(ready)
            if running == set(workers):
                self.fail(watchdog.complaint())
            self.tick()

    def _stop(self, workers: dict[Connection, BaseProcess]) -> None:
        """Let the workers finish their rollout; `_processes` kills those that do not."""
        self.shared.stop[0] = 1
        deadline = time.monotonic() + 10.0
        for pipe, process in workers.items():
            while process.is_alive() and time.monotonic() < deadline:
                if pipe.poll(0.05) and not self._take_report(pipe, process):
                    process.join(1.0)
                    break

    def _take_report(self, pipe: Connection, process: BaseProcess) -> bool:
        """Take one report; False when the worker has closed its pipe."""
        try:
            report: Report = pipe.recv()
        except (EOFError, ConnectionResetError):
            process.join()
            if process.exitcode:
                self.fail(_way_of_death(process))
            return False
        if report.error is not None:
            self.fail(f"{process.name} failed:\n{report.error}")
        else:
            self.take(report)
        return True


class _Watchdog:
    """Notices a worker whose step counter stands still while this process runs.

    The time since the last look counts for at most `LONGEST_LOOK` seconds: when the whole run was suspended (Ctrl-Z, a
    laptop's lid), nobody hung.
    """

    LONGEST_LOOK = 5.0

    def __init__(self, steps: Tensor, timeout: float) -> None:
        self._steps, self._timeout = steps, timeout
        self._last = steps[1:].clone()
        self._still = torch.zeros(self._last.shape)
        self._looked = time.monotonic()

    def complaint(self) -> str | None:
        now, steps = time.monotonic(), self._steps[1:].clone()
        self._still += min(now - self._looked, self.LONGEST_LOOK)
        self._still[steps != self._last] = 0.0
        self._looked, self._last = now, steps
        hung = (self._still > self._timeout).nonzero()
        if not len(hung):
            return None
        return (
            f"Worker {int(hung[0])} has not made a step for {self._timeout:.0f} s: it hangs. "
            "(--worker-timeout sets this limit.)"
        )


def _way_of_death(process: BaseProcess) -> str:
    code = process.exitcode or 0
    if code < 0:
        name = signal.Signals(-code).name
        hint = " Out of memory?" if name == "SIGKILL" else ""
        return f"{process.name} was killed by {name}.{hint}"
    return f"{process.name} ended with exit code {code}."
