"""Methods by name, `fine-tune` for `fine_tune.py` of a package, or by path; the class is the module's `METHOD`."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from kfrl.errors import UserError, missing_file, unknown, user_path

M = TypeVar("M")
SUFFIX = ".py"
"""The ending that distinguishes the path of a file from a name."""


def names_in(path: Iterable[str]) -> tuple[str, ...]:
    """The names of the methods in the package with the given `__path__`."""
    files = (module.name for module in pkgutil.iter_modules(path))
    return tuple(sorted(name.replace("_", "-") for name in files if name != "base"))


def method_in(package: str, name: str, base: type[M]) -> type[M]:
    """The class of a method of a package, or of a user's own file.

    Args:
        package: The package of the named methods.
        name: Name or path.
        base: The base class that a method in a file must have.

    Raises:
        UserError: there is no such method (with the nearest name), or the file is missing, cannot be imported or has
            no method.
    """
    if name.endswith(SUFFIX):
        return _method_of(user_path(name).absolute(), base)
    known = names_in(importlib.import_module(package).__path__)
    if name not in known:
        raise unknown("method", name, known, "Or give the path of a file of your own: --method path/to/file.py.")
    method: type[M] = importlib.import_module(f"{package}.{name.replace('-', '_')}").METHOD
    return method


def method_label(name: str) -> str:
    """The name of a method in folders and tables: its own, or that of its file."""
    return Path(name).stem.replace("_", "-") if name.endswith(SUFFIX) else name


def exact_method(name: str) -> str:
    """The method's name, or the absolute path of its file, which is valid in any working directory."""
    return str(user_path(name).absolute()) if name.endswith(SUFFIX) else name


def _method_of(path: Path, base: type[M]) -> type[M]:
    if not path.is_file():
        raise missing_file(path)
    module = _imported(path)
    method = getattr(module, "METHOD", None)
    wanted = f"{base.__module__}.{base.__qualname__}"
    if method is None:
        raise UserError(f"{path} defines no method. Derive a class from {wanted} and add at the end: METHOD = MyMethod")
    if not (isinstance(method, type) and issubclass(method, base)):
        raise UserError(f"METHOD of {path}: expected a class derived from {wanted}, got {method!r}.")
    return method


@functools.cache
def _imported(path: Path) -> ModuleType:
    """The module in a file, imported once per process."""
    name = f"kfrl_method_{abs(hash(path))}.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"Could not import the method file {path}{_line(error, path)}: {_named(error)}") from None
    return module


def _line(error: Exception, path: Path) -> str:
    """The line of the file that raised the error, as a part of the message."""
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}" if error.lineno else ""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""


def _named(error: Exception) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {text}"
