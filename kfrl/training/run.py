"""A run with a method and its net, which is built once per process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from kfrl.runs.folder import RunFolder
from kfrl.seeding import seed_everything, stream

M = TypeVar("M")


@dataclass(frozen=True)
class Built(Generic[M]):
    """A method and the net that it built, before any update."""

    method: M
    net: Any
    random_state: Tensor
    """State of torch's random generator after the build."""


@dataclass(frozen=True)
class MethodRun(ABC, Generic[M]):
    """Base class of runs with a method, in both domains, which add their fields."""

    _built: list[Built[M]] = field(default_factory=list, init=False, repr=False, compare=False)

    @abstractmethod
    def method(self) -> M:
        """A new instance of the run's method."""

    @abstractmethod
    def build(self, method: M) -> nn.Module:
        """Build a new net to train."""

    @property
    @abstractmethod
    def seed(self) -> int:
        """The run's seed."""

    def at(self, folder: RunFolder) -> Self:
        """The same run in another folder; the method and the net move to it."""
        run: Any = self
        moved: Self = replace(run, folder=folder, config=replace(run.config, run_dir=folder.path))
        moved._built.extend(self._built)
        self._built.clear()
        return moved

    def built(self) -> Built[M]:
        """The run's method and its net, for inspection; a trainer calls `take_built`."""
        if not self._built:
            method = self.method()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(stream(self.seed, 0))
                net = self.build(method)
                self._built.append(Built(method, net, torch.get_rng_state()))
        return self._built[0]

    def take_built(self) -> Built[M]:
        """The run's method and its net, for training: the next call of `built` builds new ones.

        Sets the random generators to their state after the build.
        """
        built = self.built()
        self._built.clear()
        seed_everything(stream(self.seed, 0))
        torch.set_rng_state(built.random_state)
        return built
