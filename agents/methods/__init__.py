"""Methods for games, one file each: `--method fine-tune` is the class `METHOD` in `fine_tune.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kfrl.registry import method_in, names_in

if TYPE_CHECKING:
    from agents.methods.base import AnyMethod


def method_names() -> tuple[str, ...]:
    """The names that `--method` accepts."""
    return names_in(__path__)


def get_method(name: str) -> type[AnyMethod]:
    """Return the class of method `name`, which may be the path of a file.

    Raises:
        UserError: there is no such method (with the nearest name), or the file cannot be imported or has no method.
    """
    from agents.methods.base import Method

    return method_in(__name__, name, Method)
