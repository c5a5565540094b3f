"""Settings of methods of both domains; each method declares its own."""

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
"""Names of flags, which no setting of a method may have."""


@dataclass(frozen=True)
class NoSettings:
    """The settings of a method without settings of its own."""


class OwnSettings:
    """Base class of methods of games and of images, with their own settings.

    These are flags of `--method NAME`, and a section of `methods:` in config.yaml.
    """

    Settings: ClassVar[type[DataclassInstance]] = NoSettings
    """A frozen dataclass; every field has a default, and a docstring that is its help text."""
    former_settings: ClassVar[tuple[str, ...]] = ()
    """Unused settings that earlier versions wrote for the method; they are ignored."""
    former_hooks: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Renamed hooks: (old name, new name)."""

    def __init_subclass__(cls) -> None:
        """Refuse a method that defines a hook by a former name.

        Raises:
            UserError: it does.
        """
        super().__init_subclass__()
        for old, new in cls.former_hooks:
            if old in vars(cls):
                raise UserError(f"Method {cls.__name__} defines {old}(), which is not called: it is {new}() now.")

    @cached_property
    def own(self) -> Any:
        """The method's own settings in this run, an instance of `Settings`."""
        return self.read_settings(vars(self)["config"])

    def refuse_unused(self, names: Collection[str], why: str) -> None:
        """Refuse settings that have no effect in this run. Defaults pass, and a 0, which asks for nothing.

        Args:
            names: The settings without effect.
            why: Sentences that say why, and what gives them an effect.

        Raises:
            UserError: one of them was given.
        """
        unused = {field.name: getattr(self.own, field.name) for field in fields(self.Settings) if field.name in names}
        default = self.Settings()
        given = [
            f"--{name.replace('_', '-')} {value}"
            for name, value in unused.items()
            if value not in (getattr(default, name), 0)
        ]
        if given:
            have = "has" if len(given) == 1 else "have"
            raise UserError(f"{', '.join(given)} {have} no effect in this run: {why}")

    @classmethod
    def section(cls) -> str:
        """The key of its settings under `methods:`, named after the file that declares them, e.g. `fine-tune`."""
        declared = cls if cls.Settings is NoSettings else cls.Settings
        return declared.__module__.rpartition(".")[2].replace("_", "-")

    @classmethod
    def read_settings(cls, config: Any) -> Any:
        """An instance of `Settings`, read from `methods` of a run's config.

        Raises:
            UserError: an unknown name, a value out of range, or a setting with the name of a common one.
        """
        taken = {field.name for field in fields(config)} | OTHER_FLAGS
        for setting in fields(cls.Settings):
            if setting.name in taken:
                raise UserError(
                    f"Method {cls.section()} has a setting {setting.name!r}, which is the name of a common setting. "
                    "Give it another name in the method's Settings."
                )
        given = config.methods.get(cls.section(), {})
        known = {name: value for name, value in given.items() if name not in cls.former_settings}
        return validated(known, cls.Settings, f"Settings of method {cls.section()}")

    @classmethod
    def resolve_settings(cls, config: Any, methods: Collection[str]) -> dict[str, dict[str, Any]]:
        """All settings of this method, defaults included, in the form of `methods` in a run's config.

        Args:
            config: The run's config, which may hold settings of several methods.
            methods: The names of all methods.

        Raises:
            UserError: a method does not exist, or `read_settings` raises it.
        """
        section = cls.section()
        for name in config.methods:
            if name not in {*methods, section}:
                raise unknown("method under `methods`", name, methods)
        settings = asdict(cls.read_settings(config))
        return {section: settings} if settings else {}


def check_settings(config: Any, methods: Collection[str], find: Callable[[str], type[OwnSettings]]) -> None:
    """Refuse wrong settings of any method in a config, including methods that the run does not use.

    Args:
        config: The run's config.
        methods: The names of all methods.
        find: Name -> class of a method; called only for the methods with settings in the config.

    Raises:
        UserError: see `OwnSettings.read_settings`.
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
