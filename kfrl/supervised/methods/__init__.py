"""One file for each method. `--method fine-tune` is `fine_tune.py`; its class is `METHOD`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kfrl.registry import method_in, names_in

if TYPE_CHECKING:
    from kfrl.supervised.methods.base import AnyMethod


def method_names() -> tuple[str, ...]:
    """The names that `--method` takes."""
    return names_in(__path__)


def get_method(name: str) -> type[AnyMethod]:
    """Return the class of method `name`, which may be the path of a file.

    Raises:
        UserError: no such method, with the nearest name; or a file that cannot be imported or has no method.
    """
    from kfrl.supervised.methods.base import Method

    return method_in(__name__, name, Method)
