"""How the processes of a run start."""

from __future__ import annotations

import ctypes
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess

import torch.multiprocessing as mp

from kfrl.training.signals import NOTED

ENVIRONMENT = {
    # One thread a worker, capped before torch is imported there.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
"""Set for every process of a run."""


def process_context() -> ForkServerContext:
    """The context that a run's processes start in.

    They are forked from a server: a process of its own that has imported what they need and has done nothing else, so
    that 16 workers start at once and hold one copy of the libraries. This process, with its threads, never forks.
    """
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["agents.engines.worker", "agents.evaluation.background", "agents.engines.preload"])
    # A signal to the whole process group must not end these two: the server reports how the workers ended. They
    # inherit the signals that are blocked here. Python itself guards both against Ctrl-C.
    guarded = set(NOTED) - {signal.SIGINT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, guarded)
    try:
        multiprocessing.resource_tracker.ensure_running()
        # Starting the tracker unblocks SIGTERM.
        signal.pthread_sigmask(signal.SIG_BLOCK, guarded)
        with worker_environment():
            multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def start(process: BaseProcess) -> None:
    """Start a process that needs nothing of the main module.

    By itself multiprocessing runs a script again in each of its processes: one without `if __name__ == "__main__"`
    would train within its own workers.
    """
    main = sys.modules["__main__"]
    kept = {name: getattr(main, name) for name in ("__spec__", "__file__") if hasattr(main, name)}
    try:
        for name in kept:
            setattr(main, name, None)
        process.start()
    finally:
        for name, value in kept.items():
            setattr(main, name, value)


def keep_memory() -> None:
    """Have glibc keep what this process frees.

    It would hand a rollout's tensors back to the system after each update, to have every page of them cleared and
    mapped again for the next; elsewhere than on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_MMAP_THRESHOLD, 2**30) or mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD = -1, -3, 2**25


def launcher_alive() -> bool:
    """Whether the process that started this one still lives."""
    launcher = multiprocessing.parent_process()
    return launcher is not None and launcher.is_alive()


@contextmanager
def worker_environment() -> Iterator[None]:
    """Set `ENVIRONMENT` for the processes started inside, where the user did not set it."""
    added = ENVIRONMENT.keys() - os.environ.keys()
    os.environ.update({name: ENVIRONMENT[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
