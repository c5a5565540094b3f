"""The launcher of an A3C run, which starts and monitors the workers."""

from __future__ import annotations

import multiprocessing.connection
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import torch
from torch import Tensor

from agents.engines.processes import process_context, start
from agents.engines.shared import untrained
from agents.engines.update import Report
from agents.engines.worker import Job, run_worker
from agents.trainer import Trainer
from kfrl.errors import UserError
from kfrl.machine import shared_memory

STOP_SECONDS = 10.0
"""Seconds that stopping workers have to finish their rollout."""


class A3CTrainer(Trainer):
    """Hogwild: worker processes that update one model in shared memory."""

    def place(self) -> None:
        """Move the teachers to shared memory; the net follows as a `SharedModel`.

        Raises:
            UserError: the system has too little shared memory for both.
        """
        teachers = sum(p.numel() for teacher in self.run.teachers for p in teacher.net.parameters())
        # Three numbers for each trained parameter: its value and both of Adam's statistics.
        room = shared_memory(4.0 * (3 * sum(p.numel() for p in self.net.parameters()) + teachers))
        if room.problem:
            raise UserError(room.warning)
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
        workers: dict[Connection, BaseProcess] = {}
        try:
            for rank in range(self.run.config.shape.workers):
                ours, theirs = context.Pipe(duplex=False)
                job = self._job(rank)
                process: BaseProcess = context.Process(
                    target=run_worker, args=(job, theirs), daemon=True, name=f"worker {rank}"
                )
                start(process)
                theirs.close()
                workers[ours] = process
            yield workers
        finally:
            self.shared.stop[0] = 1
            for process in workers.values():
                if process.is_alive():
                    process.kill()
                process.join()

    def _job(self, rank: int) -> Job:
        run, shared = self.run, self.shared
        task = self.phase.games[rank % len(self.phase.games)]
        # Tensors that are not trained are in shared memory once, like the teachers.
        fixed = untrained(self.net, self.groups)
        for tensor in fixed.values():
            tensor.share_memory_()
        return Job(
            rank=rank,
            config=run.config,
            protocol=run.rules(task),
            spec=run.spec,
            teachers=run.teachers,
            phase=self.phase,
            phase_index=self.phase_index,
            task=task,
            counter=shared.steps if self.counts(task) else shared.other_steps,
            fixed=fixed,
            shared=shared,
            session=self.session,
            scores=tuple(self.recent_of_phase[task.game]),
        )

    def _watch(self, workers: dict[Connection, BaseProcess]) -> None:
        """Take reports until all workers are done or something ends the run."""
        watchdog = _Watchdog(self.shared.updates, self.run.config.worker_timeout)
        running, reviewing = set(workers), False
        while running and not self.stopping:
            for ready in multiprocessing.connection.wait(list(running), timeout=0.0 if reviewing else 0.2):
                assert isinstance(ready, Connection)
                if not self._take_report(ready, workers[ready]):
                    running.discard(ready)
            reviewing = self.review()
            self.fail(watchdog.complaint([rank for rank, pipe in enumerate(workers) if pipe in running]))
            self.tick()

    def _stop(self, workers: dict[Connection, BaseProcess]) -> None:
        """Wait for the workers to finish their rollout; `_processes` kills those that do not."""
        self.shared.stop[0] = 1
        deadline = time.monotonic() + STOP_SECONDS
        for pipe, process in workers.items():
            while process.is_alive() and time.monotonic() < deadline:
                if pipe.poll(0.05) and not self._take_report(pipe, process):
                    process.join(1.0)
                    break

    def _take_report(self, pipe: Connection, process: BaseProcess) -> bool:
        """Receive one report; False if the worker has closed its pipe."""
        try:
            report: Report = pipe.recv()
        except (EOFError, ConnectionResetError):
            process.join()
            if process.exitcode:
                self.fail(_exit_message(process))
            return False
        if report.hopeless:
            self.fail(report.error, resumable=False)
        elif report.error is not None:
            self.fail(f"{process.name} failed:\n{report.error}")
        else:
            self.take(report)
        return True


class _Watchdog:
    """Detects a worker whose update counter does not change while this process runs.

    The time since the last check counts for at most `LONGEST_LOOK` seconds, because the whole run may have been
    suspended (Ctrl-Z, a closed laptop).
    """

    LONGEST_LOOK = 5.0

    def __init__(self, counts: Tensor, timeout: float) -> None:
        self._counts, self._timeout = counts, timeout
        self._last = counts[1:].clone()
        self._still = torch.zeros(self._last.shape)
        self._looked = time.monotonic()

    def complaint(self, ranks: Sequence[int]) -> str | None:
        """An error message about the first of these workers that hangs; None if none does."""
        now, counts = time.monotonic(), self._counts[1:].clone()
        self._still += min(now - self._looked, self.LONGEST_LOOK)
        self._still[counts != self._last] = 0.0
        self._looked, self._last = now, counts
        hung = [rank for rank in ranks if self._still[rank] > self._timeout]
        if not hung:
            return None
        return (
            f"Worker {hung[0]} has not made a step for {self._timeout:.0f} s: it hangs. "
            "(--worker-timeout sets this limit.)"
        )


def _exit_message(process: BaseProcess) -> str:
    code = process.exitcode or 0
    if code < 0:
        name = signal.Signals(-code).name
        hint = " Out of memory?" if name == "SIGKILL" else ""
        return f"{process.name} was killed by {name}.{hint}"
    return f"{process.name} ended with exit code {code}."
