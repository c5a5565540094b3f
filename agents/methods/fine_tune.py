"""Fine-tuning: the student starts with a teacher's body, perhaps its heads; all layers are trained, or the heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import nn

from agents.config import TrainConfig
from agents.methods.base import Method, NetSpec, not_used
from agents.teachers.formats import Teacher
from kfrl.errors import UserError
from kfrl.nets.atari.lstm import LSTMNet
from kfrl.nets.atari.net import AtariNet


@dataclass(frozen=True)
class Settings:
    """Fine-tuning."""

    heads_only: bool = False
    """Train only the policy and value heads and keep the teacher's body fixed (the progressive nets paper's
    baseline 2; training all layers is its baseline 3). The LSTM of --net lstm is new too if the teacher has none."""
    keep_heads: bool = False
    """Start with the teacher's policy and value too, not with new ones. The teacher needs the game's own actions."""
    new_units: Annotated[int, Ge(0)] = 0
    """Units to add to the teacher's fully connected layer (Wang et al. 2017, "Growing a Brain", by width)."""


class FineTune(Method):
    """Fine-tuning on a game: copies the teacher's convolutions, fully connected layer, LSTM and, if asked to, heads."""

    takes_teachers = "one"
    takes_recurrent_teachers = True
    Settings = Settings

    def build(self, spec: NetSpec, teachers: Sequence[Teacher]) -> AtariNet:
        """A plain net with the teacher's shape and perhaps new units.

        It has an LSTM if the teacher has one, or if the settings ask for one.

        Raises:
            UserError: the teacher is no plain net, another shape is asked for, new units in a net that cannot have
                them, or heads to keep that are of other actions.
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
        new_units = self.own.new_units
        reasons = {
            "an LSTM": kind is LSTMNet,
            "--heads-only, which keeps their layer fixed": self.own.heads_only,
            "--keep-heads, whose heads do not read them": self.own.keep_heads,
        }
        if new_units and (reason := next((name for name, holds in reasons.items() if holds), None)):
            raise UserError(f"--new-units {new_units} does not go with {reason}. Leave one of them out.")
        self._check_shape(teacher.name, tuple(map(tuple, arch["convs"])), arch["hidden"] + new_units)
        net = self.started(kind(len(spec.actions), arch["convs"], arch["hidden"] + new_units))
        for layer in (*net.hidden_layers, *(LSTMNet.state_layers if recurrent else ())):
            body, known = net.get_submodule(layer), teacher.net.get_submodule(layer)
            if layer == "fc" and new_units:
                _widen(body, known)
            else:
                body.load_state_dict(known.state_dict())
            body.requires_grad_(not self.own.heads_only)
        if self.own.keep_heads:
            _copy_heads(net, teacher, spec)
        return net

    def _check_shape(self, teacher: str, convs: tuple[tuple[int, ...], ...], hidden: int) -> None:
        """Refuse another shape than the one that the student gets."""
        usual = TrainConfig()
        for setting, own in (("convs", convs), ("hidden", hidden)):
            given = getattr(self.config, setting)
            if given not in (getattr(usual, setting), own):
                why = (
                    f"the student has its teacher's shape, here of teacher {teacher!r}: {own}. Leave it out; "
                    "--new-units widens the fully connected layer."
                )
                raise not_used(self.config.method_name, setting, given, why)


@torch.no_grad()
def _copy_heads(net: AtariNet, teacher: Teacher, spec: NetSpec) -> None:
    """Copy the teacher's policy, its actions in the order of the game's, and its value."""
    theirs, known = teacher.card.actions, teacher.net
    if set(theirs) != set(spec.actions):
        why = f"its actions are {', '.join(theirs)}, those of {spec.game} {', '.join(spec.actions)}"
    elif type(known) is not type(net):
        why = "they read its fully connected layer, those of the student its LSTM"
    elif known.arch.get("head") == "q":
        why = "it is a Q-network, which has no policy and value of its own"
    else:
        rows = [theirs.index(action) for action in spec.actions]
        for name, own in net.policy.named_parameters():
            own.copy_(known.get_parameter(f"policy.{name}")[rows])
        net.value.load_state_dict(known.get_submodule("value").state_dict())
        return
    raise UserError(f"--keep-heads: teacher {teacher.name!r} has no heads for the student: {why}. Leave it out.")


@torch.no_grad()
def _widen(layer: nn.Module, known: nn.Module) -> None:
    """Let the first units be those of `known`, and the fresh ones beside them have weights as large on average.

    Otherwise the larger ones outweigh the others; Wang et al. 2017 normalise both instead.
    """
    weight, bias, old = layer.get_parameter("weight"), layer.get_parameter("bias"), known.get_parameter("weight")
    weight.mul_(old.norm(dim=1).mean() / weight[len(old) :].norm(dim=1).mean())
    weight[: len(old)] = old
    bias[: len(old)] = known.get_parameter("bias")


METHOD = FineTune
