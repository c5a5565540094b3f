"""The evaluator process, which plays the student alone during training."""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents.engines.processes import keep_memory, launcher_alive, process_context, start
from agents.evaluation.play import evaluate
from agents.policies import policy_from
from envs.protocols import Protocol
from kfrl.errors import UserError
from kfrl.nets import build_net
from kfrl.training.signals import ignore_signals


@dataclass(frozen=True)
class Snapshot:
    """A student to evaluate, as plain arrays, which share no memory with the run."""

    step: int
    arch: dict[str, Any]
    outputs: int
    weights: dict[str, NDArray[np.float32]]


class Evaluator:
    """The launcher's side of the evaluator process, which plays one snapshot at a time."""

    def __init__(self, protocol: Protocol, episodes: int, seed: int) -> None:
        """Prepare the process. It plays `episodes` whole games from no-op starts, the same for every snapshot."""
        context = process_context()
        self._pipe, self._theirs = context.Pipe()
        arguments = (protocol, episodes, seed, self._theirs)
        self._process = context.Process(target=run_evaluator, args=arguments, daemon=True)
        self.busy = False

    def ask(self, snapshot: Snapshot) -> None:
        """Send a student to the process; `answers` returns its scores later."""
        if self._process.pid is None:
            start(self._process)
            self._theirs.close()
        self._pipe.send(snapshot)
        self.busy = True

    def answers(self) -> list[tuple[int, tuple[float, ...]]]:
        """(step, scores) of each student whose evaluation ended since the last call.

        Raises:
            ChildProcessError: the process died.
        """
        try:
            if not self._pipe.poll():
                return []
            step, scores = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise ChildProcessError("The evaluator process died.") from None
        self.busy = False
        return [(step, scores)] if scores else []

    def close(self) -> None:
        """End the process."""
        if self._process.pid is not None:
            self._process.kill()
            self._process.join()


def run_evaluator(protocol: Protocol, episodes: int, seed: int, connection: Connection) -> None:
    """Answer each `Snapshot` with (step, scores) until the pipe closes. Entry point of the evaluator process."""
    ignore_signals()
    torch.set_num_threads(1)
    keep_memory()
    while launcher_alive():
        if not connection.poll(1.0):
            continue
        try:
            snapshot: Snapshot = connection.recv()
            net = build_net(snapshot.arch, snapshot.outputs)
            net.load_state_dict({k: torch.from_numpy(v) for k, v in snapshot.weights.items()})
            result = evaluate(policy_from(net), protocol, episodes=episodes, seed=seed)
            connection.send((snapshot.step, result.scores))
        except UserError:
            # The weights are not finite. The workers report it; the curve gets no point here.
            connection.send((snapshot.step, ()))
        except (EOFError, BrokenPipeError):
            return
