"""Methods by file name: `fine-tune` is `fine_tune.py` of a package of methods, whose `METHOD` is its class."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from typing import Any

from kfrl.errors import unknown


def names_in(path: Iterable[str]) -> tuple[str, ...]:
    """The methods of the package whose `__path__` is given."""
    files = (module.name for module in pkgutil.iter_modules(path))
    return tuple(sorted(name.replace("_", "-") for name in files if name != "base"))


def method_in(package: str, name: str) -> Any:
    """The class of method `name` of a package.

    Raises:
        UserError: no such method; the message names the nearest one.
    """
    known = names_in(importlib.import_module(package).__path__)
    if name not in known:
        raise unknown("method", name, known)
    return importlib.import_module(f"{package}.{name.replace('-', '_')}").METHOD
