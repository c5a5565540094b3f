"""Signals such as Ctrl-C are noted, so that a run ends between two updates and saves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

NOTED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
"""From Ctrl-C; at the end of a machine or a job; of a terminal; and a batch system's warning before a job ends."""


@contextmanager
def noting_signals(note: Callable[[int], None]) -> Iterator[None]:
    """Inside, the signals of `NOTED` call `note` with their number instead of ending the process.

    Signals are the main thread's: in any other thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        note(number)

    before = {number: signal.signal(number, handler) for number in NOTED}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def ignore_signals() -> None:
    """Ignore them in a worker, which the launcher ends: a terminal sends its signals to all processes of a run."""
    for number in NOTED:
        signal.signal(number, signal.SIG_IGN)
