"""What the methods of both domains share: settings of their own, declared beside the method."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from kfrl.config import validated
from kfrl.errors import UserError, unknown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

OTHER_FLAGS = {"config", "resume", "dry_run", "own"}
"""Names that are taken beside the common settings."""


@dataclass(frozen=True)
class NoSettings:
    """A method that has none of its own."""


class OwnSettings:
    """A method's own settings: flags of `--method NAME`, and a part of `methods:` in config.yaml."""

    Settings: ClassVar[type[DataclassInstance]] = NoSettings
    """A frozen dataclass; every field has a default and a line of text below it, which is its help."""
    former_settings: ClassVar[tuple[str, ...]] = ()
    """Settings that earlier versions wrote for the method, which it never read."""
    former_hooks: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Hooks that have another name now: old to new."""

    def __init_subclass__(cls) -> None:
        """Refuse a method with a hook that nobody would call.

        Raises:
            UserError: a hook by its former name.
        """
        super().__init_subclass__()
        for old, new in cls.former_hooks:
            if old in vars(cls):
                raise UserError(f"Method {cls.__name__} defines {old}(), which nothing calls: it is {new}() now.")

    @cached_property
    def own(self) -> Any:
        """The method's own settings in this run, an instance of `Settings`."""
        return self.read_settings(vars(self)["config"])

    @classmethod
    def section(cls) -> str:
        """The key of its settings under `methods:`, after the file that declares them: `fine_tune.py`, `fine-tune`."""
        declared = cls if cls.Settings is NoSettings else cls.Settings
        return declared.__module__.rpartition(".")[2].replace("_", "-")

    @classmethod
    def read_settings(cls, config: Any) -> Any:
        """An instance of `Settings`, from `methods` of a run's config.

        Raises:
            UserError: an unknown name, a value out of range, or a setting that has the name of a common one.
        """
        taken = {field.name for field in fields(config)} | OTHER_FLAGS
        for setting in fields(cls.Settings):
            if setting.name in taken:
                raise UserError(
                    f"Method {cls.section()} has a setting {setting.name!r}, which is a common setting's name. "
                    "Give it another name in the method's Settings."
                )
        given = config.methods.get(cls.section(), {})
        known = {name: value for name, value in given.items() if name not in cls.former_settings}
        return validated(known, cls.Settings, f"Settings of method {cls.section()}")

    @classmethod
    def resolve_settings(cls, config: Any, methods: Collection[str]) -> dict[str, dict[str, Any]]:
        """`methods` of a run's config with all of this method's settings, those with their default too, and no others.

        Args:
            config: The run's config, which may hold settings of several methods.
            methods: The names of all methods.

        Raises:
            UserError: a method that does not exist; as `read_settings`.
        """
        section = cls.section()
        for name in config.methods:
            if name not in {*methods, section}:
                raise unknown("method under `methods`", name, methods)
        settings = asdict(cls.read_settings(config))
        return {section: settings} if settings else {}


def check_settings(config: Any, methods: Collection[str], find: Callable[[str], type[OwnSettings]]) -> None:
    """Refuse wrong settings of any method in a config, also of those that the run does not use.

    Args:
        config: The run's config.
        methods: The names of all methods.
        find: The class of a method by its name; it is asked for those alone that the config has settings of.

    Raises:
        UserError: as `OwnSettings.read_settings`.
    """
    for name in config.methods.keys() & set(methods):
        find(name).read_settings(config)


def written_settings(config: Any, method: type[OwnSettings]) -> dict[str, dict[str, Any]]:
    """`methods` of a run's config.yaml, without settings of other methods, which earlier versions wrote too.

    Raises:
        UserError: as `OwnSettings.read_settings`.
    """
    own = {name: settings for name, settings in config.methods.items() if name == method.section()}
    method.read_settings(replace(config, methods=own))
    return own
