"""Image classifiers: data, one training loop, and one file for each method.

`kfrl.supervised.train(config)` trains and scores a classifier; `kfrl.supervised.resume(folder)` continues a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kfrl.supervised.launch import resume, train

__all__ = ["resume", "train"]


def __getattr__(name: str) -> Any:
    """Import the functions on first use, so that a command's help does not load torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kfrl.supervised import launch

    return getattr(launch, name)
