"""Fine-tuning: the student starts from one teacher's body and learns new heads; everything trains."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from agents.methods.base import Method, NetSpec
from kfrl.errors import UserError
from kfrl.nets.atari import AtariNet
from kfrl.teachers.formats import Teacher


class FineTune(Method):
    """Copies conv and fully connected layers; policy and value heads start afresh."""

    takes_teachers = "one"

    def build(self, spec: NetSpec, teachers: Sequence[Teacher]) -> nn.Module:
        """A plain net of the teacher's shape, whatever the student's settings say of conv and hidden sizes."""
        (teacher,) = teachers
        if not isinstance(teacher.net, AtariNet):
            raise UserError(
                f"Teacher {teacher.name!r} is a {type(teacher.net).__name__}, whose body does not fit an Atari student."
            )
        arch = teacher.net.arch
        net = AtariNet(len(spec.actions), arch["convs"], arch["hidden"])
        for layer in net.hidden_layers:
            net.get_submodule(layer).load_state_dict(teacher.net.get_submodule(layer).state_dict())
        return net


METHOD = FineTune
