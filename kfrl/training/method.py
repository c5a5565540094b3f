"""What the methods of both domains share: settings of their own, declared beside the method."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from kfrl.config import validated
from kfrl.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

OTHER_FLAGS = {"config", "resume", "own"}
"""Names that are taken beside the common settings."""


@dataclass(frozen=True)
class NoSettings:
    """A method that has none of its own."""


class OwnSettings:
    """A method's own settings: flags of `--method NAME`, and `own:` of its config.yaml."""

    Settings: ClassVar[type[DataclassInstance]] = NoSettings
    """A frozen dataclass; every field has a default and a line of text below it, which is its help."""
    config_groups: tuple[str, ...] = ()
    """The groups of common settings that it reads."""
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
        config: Any = vars(self)["config"]
        return validated(dict(config.own), self.Settings)

    @classmethod
    def resolve_settings(cls, name: str, config: DataclassInstance, own: dict[str, Any]) -> dict[str, Any]:
        """All of the method's own settings, those with their default too.

        Args:
            name: The method, for messages.
            config: The run's common settings.
            own: The values that were given.

        Raises:
            UserError: an unknown name, a value out of range, or a setting that has the name of a common one.
        """
        taken = {field.name for field in fields(config)} | OTHER_FLAGS
        for setting in fields(cls.Settings):
            if setting.name in taken:
                raise UserError(
                    f"Method {name} has a setting {setting.name!r}, which is a common setting's name. "
                    "Give it another name in the method's Settings."
                )
        return asdict(validated(own, cls.Settings, f"Settings of method {name}"))
