"""Fine-tuning: a student starts from one teacher's body with new heads; all of it trains, or the heads alone."""

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
    """The teacher's body stays as it is, and the new policy and value heads alone are trained (the progressive nets
    paper's baseline 2; training everything is its baseline 3)."""


class FineTune(Method):
    """Copies conv and fully connected layers; policy and value heads start afresh."""

    takes_teachers = "one"
    Settings = Settings

    def build(self, spec: NetSpec, teachers: Sequence[Teacher]) -> AtariNet:
        """A plain net of the teacher's shape, whatever the student's settings say of conv and hidden sizes."""
        (teacher,) = teachers
        if type(teacher.net) is not AtariNet:
            raise UserError(
                f"Teacher {teacher.name!r} is a {type(teacher.net).__name__}, whose body fits no Atari student. "
                "--method knowledge-flow and --method progressive take teachers of any shape."
            )
        arch = teacher.net.arch
        net = AtariNet(len(spec.actions), arch["convs"], arch["hidden"])
        for layer in net.hidden_layers:
            body = net.get_submodule(layer)
            body.load_state_dict(teacher.net.get_submodule(layer).state_dict())
            body.requires_grad_(not self.own.heads_only)
        return net


METHOD = FineTune
