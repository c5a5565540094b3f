"""A process beside the workers that plays the student alone, all along the run."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agents.evaluation import Policy, evaluate
from envs.protocols import Protocol
from kfrl.errors import UserError
from kfrl.nets import build_net


@dataclass(frozen=True)
class Snapshot:
    """A student to play; plain arrays, so that no memory is shared with the run."""

    step: int
    arch: dict[str, Any]
    outputs: int
    weights: dict[str, NDArray[np.float32]]


def run_evaluator(protocol: Protocol, episodes: int, seed: int, connection: Connection) -> None:
    """Answer each `Snapshot` with (step, scores) until the pipe closes. Entry point of a spawned process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    launcher = os.getppid()
    while os.getppid() == launcher:
        if not connection.poll(1.0):
            continue
        try:
            snapshot: Snapshot = connection.recv()
            net = build_net(snapshot.arch, snapshot.outputs)
            net.load_state_dict({k: torch.from_numpy(v) for k, v in snapshot.weights.items()})
            result = evaluate(_policy(net), protocol, episodes=episodes, seed=seed)
            connection.send((snapshot.step, result.scores))
        except UserError:
            # Weights that are not finite: the workers will say so themselves, a missing point says enough.
            connection.send((snapshot.step, ()))
        except (EOFError, BrokenPipeError):
            return


def _policy(net: nn.Module) -> Policy:
    def logits(obs: Tensor) -> Tensor:
        both: tuple[Tensor, Tensor] = net(obs)
        return both[0]

    return logits
