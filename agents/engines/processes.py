"""Starting the processes of a run."""

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
    # One thread per worker; it must be set before torch is imported there.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
"""Environment of every process of a run."""


def process_context() -> ForkServerContext:
    """The multiprocessing context of a run's processes.

    They are forked from a server process that has imported the modules they need and has done nothing else, so that 16
    workers start quickly and share one copy of the libraries. This process has threads and is never forked.
    """
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["agents.engines.worker", "agents.evaluation.background", "agents.engines.preload"])
    # A signal to the process group must not end the tracker and the server, which reports the workers' exit codes.
    # They inherit the signals blocked here; Python itself protects both from Ctrl-C.
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
    """Start a process without importing the main module in it.

    By default multiprocessing runs the main script again in each process, so a script without
    `if __name__ == "__main__"` would start training in its own workers.
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
    """Make glibc keep freed memory in this process.

    By default it returns a rollout's tensors to the system after each update, and their pages are cleared and mapped
    again for the next. Without glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_MMAP_THRESHOLD, 2**30) or mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD = -1, -3, 2**25


def launcher_alive() -> bool:
    """Whether the process that started this one is still alive."""
    launcher = multiprocessing.parent_process()
    return launcher is not None and launcher.is_alive()


@contextmanager
def worker_environment() -> Iterator[None]:
    """A context that sets the variables of `ENVIRONMENT` that the user has not set, for processes started in it."""
    added = ENVIRONMENT.keys() - os.environ.keys()
    os.environ.update({name: ENVIRONMENT[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
