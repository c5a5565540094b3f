"""Communication between the processes of one run that `torchrun` started."""

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
    """The rank of this process in its run. All processes must call each method, in the same order."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the first process, which writes the files and shows the run."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes have called this."""
        if self.world > 1:
            dist.barrier()

    def largest(self, value: int) -> int:
        """The largest `value` of all processes."""
        if self.world == 1:
            return value
        held = torch.tensor(value)
        dist.all_reduce(held, dist.ReduceOp.MAX)
        return int(held)

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` over all processes, on the CPU."""
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
        """Overwrite the tensors with those of the first process."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)


ALONE = Ranks()


def ranks() -> Ranks:
    """The rank of this process; `ALONE` unless `join` has found other processes."""
    return Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else ALONE


def join(device: str) -> Ranks:
    """Connect to the other processes, if torchrun started this one. On CUDA each process uses the GPU of its rank.

    Raises:
        UserError: there is no GPU for this process.
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
        raise UserError(f"torchrun started {found} processes, each of which needs its own GPU: give --device cuda.")
    if local >= gpus:
        raise UserError(
            f"Process {local + 1} of {here} on this machine has no GPU: there are {gpus}. Start fewer processes, "
            f"torchrun --nproc-per-node {gpus}, or train on the CPU: --device cpu."
            if gpus
            else f"--device cuda: this machine has no GPU for {here} processes. Give --device cpu."
        )
    torch.cuda.set_device(local)
