"""The mimic of model compression: a net with one hidden layer that learns a teacher's probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kfrl.nets import arch_of, build_net
from kfrl.tabular.config import CompressionConfig
from kfrl.tabular.students import Net

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Lesson:
    """Encoded cases (n, columns) and the teacher's probabilities (n, classes)."""

    columns: Numbers
    targets: Numbers


def train_mimic(lesson: Lesson, config: CompressionConfig, seed: int) -> Net:
    """Minimise the squared error (1/n) sum (softmax(net(x)) - teacher(x))^2; no labels, no temperature.

    Args:
        lesson: Training cases.
        config: Hidden units, updates, batch size and learning rate.
        seed: Of the initial weights and the order of the cases.
    """
    generator = torch.Generator().manual_seed(seed)
    mean, deviation = lesson.columns.mean(axis=0), lesson.columns.std(axis=0)
    deviation = np.where(deviation > 0, deviation, 1.0)
    classes = lesson.targets.shape[1]
    arch = {"family": "mlp", "hidden": [config.hidden], "input_shape": [lesson.columns.shape[1], 1, 1]}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = build_net(arch, classes)
    optimiser = torch.optim.Adam(net.parameters(), lr=config.lr)
    x, y = _tensor((lesson.columns - mean) / deviation)[:, :, None, None], _tensor(lesson.targets)
    order = torch.empty(0, dtype=torch.int64)
    for update in range(config.updates):
        if len(order) < 1:
            order = torch.randperm(len(x), generator=generator)
        batch, order = order[: config.batch_size], order[config.batch_size :]
        for group in optimiser.param_groups:
            group["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * update / config.updates))
        loss = ((net(x[batch]).softmax(dim=1) - y[batch]) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    _absorb_scaling(net, mean, deviation)
    return Net(net, arch_of(net))


def _tensor(array: Numbers) -> Tensor:
    return torch.as_tensor(array, dtype=torch.float32)


@torch.no_grad()
def _absorb_scaling(net: torch.nn.Module, mean: Numbers, deviation: Numbers) -> None:
    """Make the first layer take x, not (x - mean) / deviation: W <- W / deviation, b <- b - W mean / deviation."""
    weight, bias = net.get_parameter("fc1.weight"), net.get_parameter("fc1.bias")
    weight.div_(_tensor(deviation))
    bias.sub_(weight @ _tensor(mean))
