"""Functions that start or resume a run on a game, train it and score it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from agents.config import TrainConfig
from agents.engines.registry import ENGINES
from agents.evaluation.play import Evaluation, evaluate
from agents.policies import Policy, Recurrent, policy_from
from agents.run import Run, reopen, resolve
from agents.teachers.formats import load_agent
from agents.trainer import Trainer
from kfrl.nets import state_size
from kfrl.runs.provenance import commit, sha256
from kfrl.training import session
from kfrl.training.session import Result, Silent
from kfrl.training.trainer import Display

Play = Callable[[Policy, str], Evaluation]
"""(policy, title) -> the evaluation of the final games."""


class Session(session.Session[Run, Trainer]):
    """A session of a run on a game."""

    command = "kfrl train"
    settings = TrainConfig

    @staticmethod
    def resolve(config: TrainConfig) -> Run:
        """See `kfrl.training.session.Session.resolve`."""
        return resolve(config)

    @staticmethod
    def reopen(folder: Path) -> Run:
        """See `kfrl.training.session.Session.reopen`."""
        return reopen(folder)

    def build(self, display: Display) -> Trainer:
        """Build the engine of the run's algorithm."""
        return ENGINES[self.run.config.algo](self.run, display, self.checkpoint)

    @property
    def finished(self) -> bool:
        """Whether all steps are done, and the final games are played if the run has any."""
        if self.checkpoint is None:
            return False
        trained: bool = self.checkpoint.state["global_step"] >= self.run.config.steps
        return trained and (self.run.folder.evaluation.exists() or not self.run.config.eval_episodes)

    def load_student(self) -> nn.Module:
        """Load the saved student of the run."""
        return load_agent(self.run.folder.student).net

    def finish(self, play: Play | None = None) -> dict[str, Any]:
        """Play the final games, write the scores beside the student, and draw the curves.

        Args:
            play: Plays the games, of the student alone and, if it still has links, of the linked student.

        Returns:
            The content of eval.json; empty if the run has no final games.
        """
        run, trainer = self.run, self.trainer
        student = trainer.method.export(trainer.net)
        answer: dict[str, Any] = {}
        if run.config.eval_episodes:
            policies: dict[str, Policy] = {"student alone": policy_from(student)}
            linked = linked_policy(run, trainer.net)
            if linked is not None:
                policies["with its teachers' links"] = linked
            results = {title: (play or self._play)(policy, title).to_dict() for title, policy in policies.items()}
            alone, *others = results.values()
            run.save_student(student, trainer.step, alone, trainer.method.caveat(trainer.net))
            stamp = {
                "steps": trainer.step,
                "sha256": sha256(run.folder.student),
                "teacher_sha256": list(run.config.teacher_sha256),
                "commit": commit(),
            }
            answer = {**stamp, **alone} | ({"with_links": others[0]} if others else {})
            if run.spec.sources:
                answer["source_steps"] = trainer.source_steps
            answer["training"] = trainer.training_report
            answer["layer_weights"] = trainer.method.metrics(trainer.net)
            run.folder.write_evaluation(answer)
        # Imported here, because the start of a run does not need it.
        from kfrl.compare.plots import draw_run

        draw_run(run.folder.path, run.folder.curves)
        return answer

    def _play(self, policy: Policy, title: str) -> Evaluation:
        episodes = self.run.config.eval_episodes
        threads = os.cpu_count() or 1
        return evaluate(policy, self.run.protocol, episodes=episodes, seed=self.run.final_seed, num_threads=threads)


def linked_policy(run: Run, net: nn.Module) -> Policy | None:
    """The policy with its teachers' links, or None if the student is independent."""
    method = run.method()
    if method.independent(net):
        return None
    if not state_size(net):
        return lambda obs: method.forward(net, obs, method.features(net, obs)).logits

    def step(obs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        output, after = method.forward_with_state(net, obs, method.features(net, obs), state)
        return output.logits, after

    return Recurrent(step, state_size(net))


def train(config: TrainConfig | Mapping[str, Any], display: Display | None = None) -> Result:
    """Train a student on a game and score it, as `kfrl train` does, without flags and printing.

    Works in any thread. In the main thread, Ctrl-C and SIGTERM end the run between two updates, with a checkpoint.

    Args:
        config: The settings, or plain values by name: `{"game": "Pong", "steps": 10_000}`.
        display: Its `update(status)` and `say(text)` are called during the run.

    Raises:
        UserError: the settings cannot be used. Nothing has been written.
        TrainingError: training failed; the run's folder has the last checkpoint.
    """
    return Session.start(config).complete(display or Silent())


def resume(folder: Path | str, display: Display | None = None) -> Result:
    """Continue a run from its latest checkpoint, and score it; a finished run is only read.

    Raises:
        UserError: the folder is not that of a run, or a file that it needs is missing.
        TrainingError: training failed.
    """
    return Session.resume(Path(folder)).complete(display or Silent())
