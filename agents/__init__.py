"""Reinforcement learning: the engines, the methods that plug into them, and the evaluation of what they train.

`agents.train(config)` trains and scores a student; `agents.resume(folder)` goes on with a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.launch import resume, train

__all__ = ["resume", "train"]


def __getattr__(name: str) -> Any:
    """The functions, imported when they are asked for: a command's help needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from agents import launch

    return getattr(launch, name)
