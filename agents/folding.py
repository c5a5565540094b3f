"""Fold of a student that is still linked, after its run: the result is a plain net without teachers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from agents.answers import answers_for, check_answerers, open_all
from agents.methods import get_method
from agents.methods.knowledge_flow import FlowNet, check_memory
from agents.observations import observe, steps_for
from agents.run import Run, reopen
from agents.teachers.formats import save_agent
from kfrl.errors import UserError
from kfrl.flow.fold import observations_needed
from kfrl.nets import state_size
from kfrl.runs.checkpoint import latest_checkpoint
from kfrl.seeding import FOLD, stream


class LinkedRun:
    """A finished or interrupted run whose student is still linked, loaded from its last checkpoint."""

    def __init__(self, path: Path) -> None:
        """Load the run.

        Raises:
            UserError: the folder is not that of a run, the run has no links or no checkpoint, a file of its
                teachers or answers has changed, or the student is independent already or has a state.
        """
        self.run: Run = reopen(path)
        name = self.run.config.method_name
        if not get_method(name).leans_on_teachers:
            raise UserError(
                f"{path} was trained by {name}, which has no links: its student is a plain net already. "
                "Fold a run of --method knowledge-flow."
            )
        checkpoint = latest_checkpoint(self.run.folder.checkpoints)
        self.run.check_inputs(checkpoint)
        built = self.run.take_built()
        method, net = built.method, built.net
        checkpoint.load_net(net)
        if not isinstance(net, FlowNet) or method.independent(net):
            raise UserError(
                f"{path} is independent already: {self.run.folder.student} needs no teacher, and is used as it is. "
                "Fold a run of --fold-at None, or one that was stopped before its fold."
            )
        if state_size(net):
            raise UserError(f"{path} has a student with an LSTM, and a fold needs its answers to single observations.")
        net.take_up_links()
        self.net: FlowNet = net
        self.steps: int = checkpoint.state["global_step"]
        self.notes: list[str] = []

    def linked(self, obs: Tensor) -> Tensor:
        """The linked student's logits (B, A)."""
        logits: Tensor = self.net.flow(obs)[0]
        return logits

    def alone(self, obs: Tensor) -> Tensor:
        """The folded student's logits (B, A)."""
        logits: Tensor = self.net.alone(obs)[0]
        return logits

    def fold(self, observations: int, report: Callable[[str], None], answers: Path | None = None) -> None:
        """Play `observations` observations with the links, and fold on them; `report` gets a line for each layer.

        The lines are kept in the card's notes.

        With a file of answers, nothing is played and no teacher is run.

        Raises:
            UserError: the answers are of another game, other rules or other teachers, or lack the linked layers; or
                there are too few observations.
        """
        config = self.run.config
        if answers is not None:
            files = open_all([answers])
            check_answerers(files, self.run.teachers)
            stored = answers_for(files, self.run.rules(self.run.spec))
            features = stored.said(self.net.flow.present_taps, {teacher.name: teacher for teacher in self.run.teachers})
            kept = [part[:observations] for part in (stored.observations, *features)]
            self._check_number(len(kept[0]), f"--observations {observations:,} of {answers}")
            self._note(self.net.fold(kept[0], kept[1:]), report)
            return
        check_memory("observations", observations)
        self._check_number(observations, f"--observations {observations:,}")
        seen = observe(self.run.rules(self.run.spec), observations, self.linked, stream(config.seed, FOLD))
        self.steps += steps_for(observations)
        self._note(self.net.fold(seen), report)

    def _check_number(self, have: int, source: str) -> None:
        """Refuse too few observations, before they are played."""
        for layer, needed in observations_needed(self.net.alone, self.net.fold_layers).items():
            if have < needed:
                raise UserError(
                    f"{source} gives {have:,} observations: too few for a fold, because layer {layer} has more "
                    f"unknowns. It needs {needed:,} or more."
                )

    def _note(self, lines: Iterable[str], report: Callable[[str], None]) -> None:
        for line in lines:
            self.notes.append(line)
            report(line)

    def save(self, path: Path) -> None:
        """Write the folded student as an agent file."""
        card = replace(self.run.card(self.steps, self.net.alone), notes="; ".join(self.notes))
        save_agent(path, self.net.alone, card)
