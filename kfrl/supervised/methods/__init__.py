"""One file a method. The file's name is the method's: `--method fine-tune` is `fine_tune.py`, its class is `METHOD`."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from kfrl.errors import unknown

if TYPE_CHECKING:
    from kfrl.supervised.methods.base import Method


def method_names() -> tuple[str, ...]:
    """The names that `--method` takes."""
    files = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name.replace("_", "-") for name in files if name != "base"))


def get_method(name: str) -> type[Method]:
    """Return the class of method `name`.

    Raises:
        UserError: no such method; the message names the nearest one.
    """
    if name not in method_names():
        raise unknown("method", name, method_names())
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    method: type[Method] = module.METHOD
    return method
