"""Fine-tuning: the student starts with a teacher's body and new heads; all layers are trained, or only the new ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agents.methods.base import Method, NetSpec
from agents.teachers.formats import Teacher
from kfrl.errors import UserError
from kfrl.nets.atari.lstm import LSTMNet
from kfrl.nets.atari.net import AtariNet


@dataclass(frozen=True)
class Settings:
    """Fine-tuning."""

    heads_only: bool = False
    """Train only the new policy and value heads and keep the teacher's body fixed (the progressive nets paper's
    baseline 2; training all layers is its baseline 3). The LSTM of --net lstm is new too if the teacher has none."""


class FineTune(Method):
    """Fine-tuning on a game: copies the teacher's convolutions, fully connected layer and LSTM; the heads are new."""

    takes_teachers = "one"
    takes_recurrent_teachers = True
    Settings = Settings

    def build(self, spec: NetSpec, teachers: Sequence[Teacher]) -> AtariNet:
        """A plain net with the teacher's shape; the settings `convs` and `hidden` are not used.

        It has an LSTM if the teacher has one, or if the settings ask for one.
        """
        (teacher,) = teachers
        if not isinstance(teacher.net, AtariNet) or type(teacher.net) not in (AtariNet, LSTMNet):
            raise UserError(
                f"Teacher {teacher.name!r} is a {type(teacher.net).__name__}, whose body an Atari student cannot use. "
                "--method knowledge-flow and --method progressive accept teachers of any shape."
            )
        arch = teacher.net.arch
        recurrent = isinstance(teacher.net, LSTMNet)
        kind = LSTMNet if recurrent or self.config.net == "lstm" else AtariNet
        net = kind(len(spec.actions), arch["convs"], arch["hidden"])
        for layer in (*net.hidden_layers, *(LSTMNet.state_layers if recurrent else ())):
            body = net.get_submodule(layer)
            body.load_state_dict(teacher.net.get_submodule(layer).state_dict())
            body.requires_grad_(not self.own.heads_only)
        return net


METHOD = FineTune
