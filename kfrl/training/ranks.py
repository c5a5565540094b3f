"""One run in several processes, started by `torchrun`, and what they agree on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from kfrl.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run. All of them have to call each method, in one order."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this one writes files and shows the run."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            dist.barrier()

    def largest(self, value: int) -> int:
        """The largest of what the processes give."""
        if self.world == 1:
            return value
        held = torch.tensor(value)
        dist.all_reduce(held, dist.ReduceOp.MAX)
        return int(held)

    def total(self, values: Tensor) -> Tensor:
        """The sum of what the processes give, on the CPU."""
        held = values.detach().cpu().clone()
        if self.world > 1:
            dist.all_reduce(held)
        return held

    def text_of_the_first(self, text: str) -> str:
        """The first process's `text`."""
        held = [text]
        if self.world > 1:
            dist.broadcast_object_list(held)
        return held[0]

    def follow(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of the first process."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)


ALONE = Ranks()


def ranks() -> Ranks:
    """This process's place; the only one unless `join` has found others."""
    return Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else ALONE


def join(device: str) -> Ranks:
    """Find the other processes, if torchrun has started this one. On CUDA each takes the GPU of its number.

    Raises:
        UserError: this process has no GPU.
    """
    if dist.is_torchelastic_launched() and not dist.is_initialized():
        cuda = device.startswith("cuda")
        if cuda:
            _take_gpu(device)
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    return ranks()


def _take_gpu(device: str) -> None:
    local, here, found = (int(os.environ[name]) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    gpus = torch.cuda.device_count()
    if device != "cuda":
        raise UserError(f"torchrun started {found} processes, and each takes a GPU of its own: give --device cuda.")
    if local >= gpus:
        raise UserError(
            f"Process {local + 1} of {here} on this machine has no GPU: there are {gpus}. Start fewer, torchrun "
            f"--nproc-per-node {gpus}, or train on the CPU: --device cpu."
            if gpus
            else f"--device cuda: this machine has no GPU for {here} processes. Give --device cpu."
        )
    torch.cuda.set_device(local)
