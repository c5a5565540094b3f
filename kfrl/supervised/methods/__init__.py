"""One file a method. The file's name is the method's: `--method fine-tune` is `fine_tune.py`, its class is `METHOD`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kfrl.registry import method_in, names_in

if TYPE_CHECKING:
    from kfrl.supervised.methods.base import Method


def method_names() -> tuple[str, ...]:
    """The names that `--method` takes."""
    return names_in(__path__)


def get_method(name: str) -> type[Method]:
    """Return the class of method `name`.

    Raises:
        UserError: no such method; the message names the nearest one.
    """
    method: type[Method] = method_in(__name__, name)
    return method
