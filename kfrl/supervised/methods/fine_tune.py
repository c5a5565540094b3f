"""Fine-tuning: the student starts from one teacher's body and learns a new head; everything trains."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from kfrl.errors import UserError, shortened
from kfrl.nets import heads_of
from kfrl.supervised.classifiers import Teacher
from kfrl.supervised.methods.base import Method, Task


class FineTune(Method):
    """The student starts with every tensor of the teacher except those of its head."""

    takes_teachers = "one"

    @classmethod
    def default_net(cls, data_net: str, teachers: Sequence[Teacher]) -> str:
        """The teacher's net."""
        return teachers[0].card.net

    def build(self, task: Task, teachers: Sequence[Teacher]) -> nn.Module:
        """A net like the teacher's.

        Raises:
            UserError: a layer of the teacher has no counterpart of its shape in the student.
        """
        net = super().build(task, teachers)
        (teacher,) = teachers
        body, theirs = _body(net), _body(teacher.net)
        differing = sorted(
            name
            for name in body.keys() | theirs.keys()
            if name not in body or name not in theirs or body[name].shape != theirs[name].shape
        )
        if differing:
            raise UserError(
                f"The layers of teacher {teacher.name!r} ({teacher.card.net}, on images of {teacher.card.input_shape}) "
                f"are copied to the student ({task.net}, {task.shape}), and these do not fit: "
                f"{shortened(differing, 4)}. Take the teacher's net "
                f"(--net {teacher.card.net}) and images of its size, or --method knowledge-flow, which takes any net."
            )
        net.load_state_dict(theirs, strict=False)
        return net


def _body(net: nn.Module) -> dict[str, Tensor]:
    heads = heads_of(net)
    return {name: tensor for name, tensor in net.state_dict().items() if name.rpartition(".")[0] not in heads}


METHOD = FineTune
