"""Reinforcement learning: engines, methods and evaluation.

`agents.train(config)` trains and scores a student; `agents.resume(folder)` continues a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.launch import resume, train

__all__ = ["resume", "train"]


def __getattr__(name: str) -> Any:
    """The functions, imported on first use, because the help of a command must not import torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from agents import launch

    return getattr(launch, name)
