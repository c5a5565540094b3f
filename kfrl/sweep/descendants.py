"""Ending the processes that a sweep started, so that none outlives the sweep."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
LOOK_EVERY = 0.5
"""Seconds between two checks of a watched condition."""


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parents die (Linux), so that `end_descendants` finds them."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(of: int | None = None) -> list[int]:
    """The ids of all living descendants of this process, or of process `of`; empty where there is no /proc."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                children[int(parent)].append(int(entry.name))
    found: list[int] = []
    queue = [os.getpid() if of is None else of]
    while queue:
        below = children[queue.pop()]
        found += below
        queue += below
    return found


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def end_descendants() -> None:
    """Kill every descendant of this process, including those started meanwhile."""
    deadline = time.monotonic() + 3.0
    while (left := descendants()) and time.monotonic() < deadline:
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def watch(good: Callable[[], bool], then: Callable[[], None]) -> None:
    """Call `good` every `LOOK_EVERY` seconds in a new thread; the first time it is false, call `then` and end."""

    def look() -> None:
        while good():
            time.sleep(LOOK_EVERY)
        then()

    threading.Thread(target=look, daemon=True, name="watch").start()
