import pytest
import torch

from kfrl.errors import UserError
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.methods.fine_tune import FineTune


def test_the_body_is_the_teachers_and_the_head_is_new(task, taught) -> None:
    teacher = taught("resnet-8", classes=("a", "b", "c", "d"), shape=(3, 12, 12))
    net = FineTune(SupervisedConfig()).build(task("resnet-8", (3, 8, 8)), [teacher])
    ours, theirs = net.state_dict(), teacher.net.state_dict()
    assert ours["head.weight"].shape[0] == 3
    body = [name for name in ours if not name.startswith("head")]
    assert any("running_mean" in name for name in body)
    assert all(torch.equal(ours[name], theirs[name]) for name in body)
    with torch.no_grad():
        net.get_parameter(body[0]).add_(1.0)
    assert torch.equal(teacher.net.state_dict()[body[0]], theirs[body[0]])
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_the_teachers_net_is_the_default(taught) -> None:
    assert FineTune.default_net("mnist-mlp", [taught("mlp-9")]) == "mlp-9"


@pytest.mark.parametrize(("net", "shape"), [("mlp-9", (1, 8, 8)), ("mlp-6", (1, 12, 12)), ("mlp-6-6", (1, 8, 8))])
def test_a_teacher_of_another_shape_is_refused(task, taught, net: str, shape: tuple[int, int, int]) -> None:
    with pytest.raises(UserError, match=r"these do not fit: fc.*--method knowledge-flow"):
        FineTune(SupervisedConfig()).build(task("mlp-6"), [taught(net, shape=shape)])
