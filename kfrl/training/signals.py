"""Handlers that note signals such as Ctrl-C, so that a run can end between two updates and save."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

NOTED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
"""Sent by Ctrl-C; when a machine or a job ends; when a terminal closes; by a batch system shortly before a job ends."""


@contextmanager
def noting_signals(note: Callable[[int], None]) -> Iterator[None]:
    """A context in which a signal of `NOTED` calls `note` with its number instead of ending the process.

    Only the main thread can handle signals: in any other thread the context changes nothing.
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
    """Ignore the signals of `NOTED` in a worker. A terminal sends them to all processes; the launcher ends workers."""
    for number in NOTED:
        signal.signal(number, signal.SIG_IGN)
