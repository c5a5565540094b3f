import pytest
import torch

from kfrl.errors import UserError
from kfrl.nets import build_net
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.methods.anti_distillation import AntiDistillation


@pytest.mark.parametrize(("small", "large"), [("mlp-6", "mlp-9"), ("conv-3-4", "conv-5-4"), ("lstm-3", "lstm-5")])
def test_the_student_begins_as_its_teacher(task, taught, batch, small: str, large: str) -> None:
    teacher = taught(small)
    student = AntiDistillation(SupervisedConfig()).build(task(large), [teacher]).eval()
    torch.testing.assert_close(student(batch.images), teacher.net(batch.images), rtol=1e-5, atol=1e-6)
    assert sum(p.numel() for p in student.parameters()) > sum(p.numel() for p in teacher.net.parameters())
    # What a run saves is enough to build it again.
    twin = build_net(student.arch, 3)
    twin.load_state_dict(student.state_dict())
    assert torch.equal(twin(batch.images), student(batch.images))


def test_a_teacher_of_fewer_classes_keeps_its_answers(task, taught, batch) -> None:
    teacher = taught("mlp-6", classes=("cat", "dog"))
    logits = AntiDistillation(SupervisedConfig()).build(task("mlp-9"), [teacher])(batch.images)
    torch.testing.assert_close(logits[:, :2], teacher.net(batch.images), rtol=1e-5, atol=1e-6)
    assert not logits[:, 2].any()


def test_uniform_extension_reaches_theta(task, taught) -> None:
    config = SupervisedConfig(methods={"anti-distillation": {"extension": "uniform", "theta": 0.5}})
    student = AntiDistillation(config).build(task("mlp-60"), [taught("mlp-6")])
    new = student.fc1.weight[6:].detach()
    assert float(new.min()) >= 0 and 0.49 < float(new.max()) < 0.5


def test_a_net_that_the_teacher_does_not_fit_into_is_refused(task, taught) -> None:
    with pytest.raises(UserError, match="would shrink"):
        AntiDistillation(SupervisedConfig()).build(task("mlp-5"), [taught("mlp-6")])
