"""Fine-tuning: the student starts with a teacher's body and new heads; all layers are trained, or only the heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agents.methods.base import Method, NetSpec
from agents.teachers.formats import Teacher
from kfrl.errors import UserError
from kfrl.nets.atari.net import AtariNet


@dataclass(frozen=True)
class Settings:
    """Fine-tuning."""

    heads_only: bool = False
    """Train only the new policy and value heads and keep the teacher's body fixed (the progressive nets paper's
    baseline 2; training all layers is its baseline 3)."""


class FineTune(Method):
    """Fine-tuning on a game: copies the convolutions and the fully connected layer; the heads are new."""

    takes_teachers = "one"
    Settings = Settings

    def build(self, spec: NetSpec, teachers: Sequence[Teacher]) -> AtariNet:
        """A plain net with the teacher's shape; the settings `convs` and `hidden` are not used."""
        (teacher,) = teachers
        if type(teacher.net) is not AtariNet:
            raise UserError(
                f"Teacher {teacher.name!r} is a {type(teacher.net).__name__}, whose body an Atari student cannot use. "
                "--method knowledge-flow and --method progressive accept teachers of any shape."
            )
        arch = teacher.net.arch
        net = AtariNet(len(spec.actions), arch["convs"], arch["hidden"])
        for layer in net.hidden_layers:
            body = net.get_submodule(layer)
            body.load_state_dict(teacher.net.get_submodule(layer).state_dict())
            body.requires_grad_(not self.own.heads_only)
        return net


METHOD = FineTune
