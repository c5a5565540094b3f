"""Ctrl-C and SIGTERM as a note, so that a run ends between two updates and saves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def noting_signals(note: Callable[[int], None]) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM call `note` with their number instead of ending the process.

    Signals are the main thread's: in any other thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        note(number)

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
