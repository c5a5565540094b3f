"""Ctrl-C and SIGTERM as a note, so that a run ends between two updates and saves."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def noting_signals(note: Callable[[int], None]) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM call `note` with their number instead of ending the process."""

    def handler(number: int, frame: FrameType | None) -> None:
        note(number)

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
