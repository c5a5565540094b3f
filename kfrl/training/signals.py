"""Ctrl-C, and what ends a process politely, as a note, so that a run ends between two updates and saves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

NOTED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
"""Ctrl-C; the end of a machine or a job; of a terminal; a batch system's warning that the time is nearly up."""


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
    """In a process of a run, which ends when the launcher says so: a terminal sends its signals to all of them."""
    for number in NOTED:
        signal.signal(number, signal.SIG_IGN)
