import pytest
import torch

from kfrl.errors import UserError
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.methods.base import Progress
from kfrl.supervised.methods.mimic import Mimic


def test_the_loss_is_the_distance_to_the_mean_logits_of_the_teachers(task, taught, batch, says) -> None:
    method = Mimic(SupervisedConfig())
    method.build(
        task(), [taught(says([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])), taught(says([3.0, 2.0, 1.0], [0.0, 4.0, 0.0]))]
    )
    student = says([2.0, 5.0, 2.0], [1.0, 2.0, 0.0])
    terms = method.losses(student, batch, Progress(0, 0.0, 0.0))
    assert {name: float(term.detach()) for name, term in terms.items()} == {"mimic": (0.5 * 9 + 0.5 * 1) / 2}
    terms["mimic"].backward()
    assert torch.equal(student.logits.grad, torch.tensor([[0.0, 1.5, 0.0], [0.5, 0.0, 0.0]]))


def test_a_teacher_of_other_classes_is_refused(task, taught) -> None:
    with pytest.raises(UserError, match="mimic compares logits"):
        Mimic(SupervisedConfig()).build(task(), [taught(classes=("cat", "dog"))])
