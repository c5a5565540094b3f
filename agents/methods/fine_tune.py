"""Fine-tuning: a student starts from one teacher's body with new heads; all of it trains, or the heads alone."""

from __future__ import annotations

from collections.abc import Sequence

from agents.methods.base import Method, NetSpec
from agents.teachers.formats import Teacher
from kfrl.errors import UserError
from kfrl.nets.atari.net import AtariNet


class FineTune(Method):
    """Copies conv and fully connected layers; policy and value heads start afresh."""

    takes_teachers = "one"
    config_groups = ("fine_tune",)

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
            body.requires_grad_(not self.config.fine_tune.heads_only)
        return net


METHOD = FineTune
