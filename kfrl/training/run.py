"""What a run of either domain has: a method, and the net that it builds, once a process."""

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
    """A method with the net that it has built, before any update."""

    method: M
    net: Any
    random_state: Tensor
    """Where torch's random numbers stood after the build."""


@dataclass(frozen=True)
class MethodRun(ABC, Generic[M]):
    """A run that trains by a method; its fields are those of its domain."""

    _built: list[Built[M]] = field(default_factory=list, init=False, repr=False, compare=False)

    @abstractmethod
    def method(self) -> M:
        """A fresh instance of the run's method."""

    @abstractmethod
    def build(self, method: M) -> nn.Module:
        """The net that trains, fresh."""

    @property
    @abstractmethod
    def seed(self) -> int:
        """The run's own."""

    def at(self, folder: RunFolder) -> Self:
        """The same run in another folder, with what is built."""
        run: Any = self
        moved: Self = replace(run, folder=folder, config=replace(run.config, run_dir=folder.path))
        moved._built.extend(self._built)
        self._built.clear()
        return moved

    def built(self) -> Built[M]:
        """The run's method and its net, to look at; a trainer calls `take_built`."""
        if not self._built:
            method = self.method()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(stream(self.seed, 0))
                net = self.build(method)
                self._built.append(Built(method, net, torch.get_rng_state()))
        return self._built[0]

    def take_built(self) -> Built[M]:
        """What `built` gives, to be changed: the next call builds anew. The random numbers go on after the build."""
        built = self.built()
        self._built.clear()
        seed_everything(stream(self.seed, 0))
        torch.set_rng_state(built.random_state)
        return built
