"""PathNet (Fernando et al. 2017): layers of modules, of which a path uses a few; and a net made from one path."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.nets.init import orthogonal
from kfrl.nets.linear import Linear, linear
from kfrl.nets.memory_format import channels_last, screens

PAPER_CONVS = ((8, 8, 4), (8, 4, 2), (8, 3, 1))
"""(filters, kernel, stride) of a module in each layer but the last."""

LastLayer = Literal["sum", "mean"]
"""How the last layer combines the outputs of its active modules."""

Path = Sequence[Sequence[int]]
"""The indices of the active modules of each layer, without repetition."""


def module_sum(z: Tensor, modules: int) -> Tensor:
    """A layer's output, the sum over its modules of relu(z_m): (B, modules x n, ...) -> (B, n, ...)."""
    return torch.unflatten(F.relu(z), 1, (modules, -1)).sum(1)


def module_mean(z: Tensor, modules: int) -> Tensor:
    """`module_sum`, divided by the number of modules."""
    return module_sum(z, modules) / modules


def module_gain(active: int) -> float:
    """Gain of a module's orthogonal initialisation for a sum of N modules; sqrt(2) for N = 1.

    It keeps the mean square of the layers' inputs: for z ~ N(0, g^2), E[(sum_m relu(z_m))^2] = g^2 (N / 2 +
    N (N - 1) / (2 pi)). With sqrt(2) for every N, the values of four layers of N = 4 start at 20 to 90.
    """
    return 1.0 / math.sqrt(active / 2 + active * (active - 1) / (2 * math.pi))


def module_shapes(
    convs: Sequence[Sequence[int]], hidden: int, frame_stack: int, screen_size: int
) -> Iterator[tuple[str, int, int, dict[str, Any]]]:
    """For each layer: its name, the inputs and outputs of a module, and the other settings of a convolution.

    Raises:
        ValueError: a convolution does not fit its input.
    """
    channels, size = frame_stack, screen_size
    for index, (filters, kernel, stride) in enumerate(convs, start=1):
        if min(filters, kernel, stride) < 1 or kernel > size:
            raise ValueError(
                f"Expected a module of at least 1 filter, kernel 1 to {size} and stride 1 on its {size} x {size} "
                f"input, got {filters} filters, kernel {kernel}, stride {stride}."
            )
        yield f"conv{index}", channels, filters, {"kernel_size": kernel, "stride": stride}
        channels, size = filters, (size - kernel) // stride + 1
    yield "fc", channels * size * size, hidden, {}


def _layer(inputs: int, outputs: int, settings: Mapping[str, Any]) -> nn.Conv2d | nn.Linear:
    return nn.Conv2d(inputs, outputs, **settings) if settings else Linear(inputs, outputs)


class PathNet(nn.Module):
    """L layers of M modules, and a policy and a value head for each task.

    A module is a convolution, or a matrix in the last layer, with a ReLU. A layer's output is the sum of the outputs of
    its active modules; in the last layer it may be their mean.
    """

    frozen: Tensor
    """(L, M) bool: modules of the best paths of earlier tasks."""

    def __init__(
        self,
        outputs: Mapping[str, int],
        modules: int = 10,
        active_modules: int = 4,
        convs: Sequence[Sequence[int]] = PAPER_CONVS,
        hidden: int = 256,
        frame_stack: int = 4,
        screen_size: int = 84,
        last_layer: LastLayer = "sum",
    ) -> None:
        """Build every module and head.

        Args:
            outputs: Task -> A.
            modules: M.
            active_modules: N, the most modules of a layer in a path; the initial weights are smaller for a larger N.
            convs: (filters, kernel, stride) of a module in each of the first L - 1 layers.
            hidden: Units of a module in the last layer.
            frame_stack: Input channels.
            screen_size: Height and width of the input.
            last_layer: Sum or mean of the last layer's modules.
        """
        super().__init__()
        self.last_layer = last_layer
        self.fields: dict[str, Any] = {
            "convs": [list(conv) for conv in convs],
            "hidden": hidden,
            "frame_stack": frame_stack,
            "screen_size": screen_size,
        }
        self.layers = nn.ModuleList(
            nn.ModuleList(_layer(inputs, width, settings) for _ in range(modules))
            for _, inputs, width, settings in module_shapes(**self.fields)
        )
        self.heads = nn.ModuleDict(
            {
                task: nn.ModuleDict({"policy": nn.Linear(hidden, actions), "value": nn.Linear(hidden, 1)})
                for task, actions in outputs.items()
            }
        )
        last = active_modules if last_layer == "mean" else 1
        self._gains = [module_gain(active_modules)] * (len(self.layers) - 1) + [last * module_gain(active_modules)]
        self.register_buffer("frozen", torch.zeros(len(self.layers), modules, dtype=torch.bool))
        orthogonal(self.heads)
        self._start_free_modules()
        channels_last(self)

    def forward(self, obs: Tensor, path: Path, task: str) -> tuple[Tensor, Tensor]:
        """Map observations (B, stack, H, W) uint8 to a task's logits (B, A) and values (B,) along a path."""
        h = screens(obs)
        for layer, active in enumerate(path):
            chosen = self._active(layer, active)
            weight, bias = (torch.cat([module.get_parameter(name) for module in chosen]) for name in ("weight", "bias"))
            first = chosen[0]
            z = F.conv2d(h, weight, bias, first.stride) if isinstance(first, nn.Conv2d) else _dense(h, weight, bias)
            mean = self.last_layer == "mean" and layer == len(path) - 1
            h = module_mean(z, len(chosen)) if mean else module_sum(z, len(chosen))
        heads = self._heads(task)
        return heads["policy"](h), heads["value"](h).squeeze(1)

    def module(self, layer: int, index: int) -> nn.Conv2d | nn.Linear:
        """One module."""
        (module,) = self._active(layer, [index])
        return module

    def _active(self, layer: int, indices: Sequence[int]) -> list[nn.Conv2d | nn.Linear]:
        modules = self.layers[layer]
        assert isinstance(modules, nn.ModuleList)
        return cast("list[nn.Conv2d | nn.Linear]", [modules[index] for index in indices])

    def _heads(self, task: str) -> nn.ModuleDict:
        heads = self.heads[task]
        assert isinstance(heads, nn.ModuleDict)
        return heads

    def free_modules(self) -> Iterator[nn.Conv2d | nn.Linear]:
        """The modules that are not frozen."""
        for layer, index in (~self.frozen).nonzero().tolist():
            yield self.module(layer, index)

    def freeze(self, path: Path) -> None:
        """Freeze the modules of a path, and re-initialise all free modules."""
        for layer, active in enumerate(path):
            self.frozen[layer, list(active)] = True
        self._start_free_modules()

    def _start_free_modules(self) -> None:
        for layer, index in (~self.frozen).nonzero().tolist():
            orthogonal(self.module(layer, index), {"": self._gains[layer]})

    @torch.no_grad()
    def along(self, path: Path, task: str) -> ModularNet:
        """A net with the modules of a path and the heads of a task, without the other modules."""
        heads = self._heads(task)
        policy = heads["policy"]
        assert isinstance(policy, nn.Linear)
        net = ModularNet(
            policy.out_features, [len(active) for active in path], **self.fields, last_layer=self.last_layer
        )
        for layer, (name, active) in enumerate(zip(net.hidden_layers, path, strict=True)):
            chosen = self._active(layer, active)
            for part in ("weight", "bias"):
                stacked = torch.cat([module.get_parameter(part) for module in chosen])
                net.get_submodule(name).get_parameter(part).copy_(stacked)
        for head in net.head_layers:
            net.get_submodule(head).load_state_dict(heads[head].state_dict())
        return net


def _dense(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # Flattened in NCHW order, whatever the memory format.
    return linear(h.flatten(1), weight, bias)


class ModularNet(nn.Module):
    """One path of a PathNet: a layer concatenates its active modules, and sums them after the ReLU.

    The output of each layer, a sub-module, is the pre-activation of all its modules.
    """

    head_layers = ("policy", "value")
    head = "actor-critic"

    def __init__(
        self,
        num_actions: int,
        modules: Sequence[int],
        convs: Sequence[Sequence[int]] = PAPER_CONVS,
        hidden: int = 256,
        frame_stack: int = 4,
        screen_size: int = 84,
        last_layer: LastLayer = "sum",
    ) -> None:
        """Build the net.

        Args:
            num_actions: A.
            modules: Number of active modules of each layer.
            convs: See `PathNet`.
            hidden: Units of a module in the last layer.
            frame_stack: Input channels.
            screen_size: Height and width of the input.
            last_layer: See `PathNet`.

        Raises:
            ValueError: the number of modules of a layer is missing or below 1, or a convolution does not fit its input.
        """
        super().__init__()
        shapes = list(module_shapes(convs, hidden, frame_stack, screen_size))
        if len(modules) != len(shapes) or min(modules) < 1:
            raise ValueError(f"Expected at least 1 module for each of {len(shapes)} layers, got {list(modules)}.")
        self.arch: dict[str, Any] = {
            "family": "pathnet",
            "modules": list(modules),
            "convs": [list(conv) for conv in convs],
            "hidden": hidden,
            "frame_stack": frame_stack,
            "screen_size": screen_size,
            "last_layer": last_layer,
        }
        for (name, inputs, width, settings), count in zip(shapes, modules, strict=True):
            self.add_module(name, _layer(inputs, count * width, settings))
        self.hidden_layers = tuple(name for name, *_ in shapes)
        self.policy = nn.Linear(hidden, num_actions)
        self.value = nn.Linear(hidden, 1)
        channels_last(self)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Map observations (B, stack, H, W) uint8 to logits (B, A) and values (B,)."""
        h = screens(obs)
        for name, modules in zip(self.hidden_layers, self.arch["modules"], strict=True):
            z = self.get_submodule(name)(h.flatten(1) if name == "fc" else h)
            mean = name == "fc" and self.arch["last_layer"] == "mean"
            h = module_mean(z, modules) if mean else module_sum(z, modules)
        return self.policy(h), self.value(h).squeeze(1)
