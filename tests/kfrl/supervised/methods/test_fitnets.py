import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kfrl.errors import UserError
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.data.batches import Batch
from kfrl.supervised.methods.base import Progress
from kfrl.supervised.methods.fitnets import FitNet, FitNets


def build(task, taught, student: str = "mlp-6-5-4", teacher: str = "mlp-7-8-9", epochs: int = 8, **settings: object):
    method = FitNets(SupervisedConfig(epochs=epochs, methods={"fitnets": {**settings}}))
    return method, method.build(task(student), [taught(teacher)])


def test_the_hint_is_the_middle_layer_behind_a_relu_on_both_sides(task, taught, batch: Batch) -> None:
    method, net = build(task, taught, hint_weight=3.0)
    assert (method.guided, method.hint) == ("fc2", "fc2")
    x, teacher, student = batch.images.flatten(1), method.teachers[0].net, net.student
    hint = F.linear(F.linear(x, *teacher.fc1.parameters()).relu(), *teacher.fc2.parameters()).relu()
    guided = F.linear(F.linear(x, *student.fc1.parameters()).relu(), *student.fc2.parameters()).relu()
    guided = F.linear(guided, net.regressor.weight, net.regressor.bias).relu()
    terms = method.losses(net, batch, Progress(0, 0.5, 0.1))
    assert hint.shape == guided.shape == (2, 8)
    assert set(terms) == {"hint"}
    torch.testing.assert_close(terms["hint"], 3.0 * 0.5 * (guided - hint).square().mean())


def test_the_first_stage_trains_the_student_up_to_the_guided_layer_and_the_regressor(task, taught) -> None:
    method, net = build(task, taught)
    first, second = method.stages(net)
    named = {id(p): name for name, p in net.named_parameters()}
    assert {named[id(p)].rpartition(".")[0] for p in first.groups[0].parameters} == {
        "student.fc1",
        "student.fc2",
        "regressor",
    }
    assert {id(p) for p in second.groups[0].parameters} == {id(p) for p in net.student.parameters()}
    assert (first.epochs, second.epochs) == (2, 6)


@pytest.mark.parametrize(("in_stage", "weight"), [(0.0, 4.0), (0.5, 2.5), (1.0, 1.0)])
def test_the_weight_of_the_soft_targets_falls_linearly(
    task, taught, batch: Batch, says, in_stage: float, weight: float
) -> None:
    method = FitNets(SupervisedConfig(methods={"fitnets": {"temperature": 2.0}}))
    method.teachers = (taught(says([2.0, 0.0, 0.0], [0.0, 0.0, 0.0])),)
    student = says([0.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    terms = method.losses(FitNet(student, nn.Identity()), batch, Progress(1, in_stage, 0.7))
    # Softened, the teacher says e : 1 : 1 of the first image, and the same as the student of the second.
    p = torch.tensor([torch.e, 1.0, 1.0]) / (torch.e + 2)
    kl = float((p * (3 * p).log()).sum())
    assert float(terms["distillation"].detach()) == pytest.approx(weight * kl / 2, rel=1e-4)
    assert float(terms["task"].detach()) == pytest.approx(float(torch.tensor(3.0).log()))


def test_the_regressor_is_a_convolution_that_fits_the_hint(task, taught) -> None:
    method, net = build(task, taught, "conv-3-4", "resnet-8", guided_layer="layer1", hint_layer="stage2")
    assert net.regressor.weight.shape == (32, 3, 5, 5)
    assert net.regressor.bias is not None
    terms = method.losses(net, Batch(torch.randn(2, 1, 8, 8), torch.tensor([0, 1])), Progress(0, 0.0, 0.0))
    terms["hint"].backward()
    assert net.student.get_submodule("layer1")[0].weight.grad is not None
    assert net.student.get_submodule("layer2")[0].weight.grad is None


def test_the_student_ships_without_the_regressor(task, taught) -> None:
    method, net = build(task, taught)
    assert set(method.export(net).state_dict()) == set(net.student.state_dict())


@pytest.mark.parametrize(
    ("student", "teacher", "settings", "words"),
    [
        ("conv-3-4", "resnet-8", {"guided_layer": "layer2", "hint_layer": "stem"}, r"\(4, 4, 4\) into \(16, 8, 8\)"),
        ("mlp-6", "resnet-8", {}, "--guided-layer and --hint-layer"),
        ("mlp-6", "mlp-6", {"hint_layer": "fc3"}, "Unknown teacher's layer 'fc3'. Did you mean 'fc1'"),
        ("lstm-4", "mlp-6", {}, "a RowLSTM names none"),
    ],
)
def test_layers_that_cannot_be_joined_are_refused(task, taught, student, teacher, settings, words) -> None:
    with pytest.raises(UserError, match=words):
        build(task, taught, student, teacher, **settings)


def test_two_stages_need_two_epochs(task, taught) -> None:
    method, net = build(task, taught, epochs=1)
    with pytest.raises(UserError, match=r"two stages.*--epochs 2, got 1"):
        method.stages(net)


def test_a_maxout_layers_output_is_the_hint_without_a_relu(task, taught) -> None:
    shape = (3, 32, 32)
    config = {"guided_layer": "layer6", "hint_layer": "layer2", "hint_weight": 3.0}
    method = FitNets(SupervisedConfig(methods={"fitnets": config}))
    net = method.build(task("fitnet-1", shape), [taught("maxout-cifar", shape=shape)])
    images = torch.randn(2, *shape)
    terms = method.losses(net, Batch(images, torch.tensor([0, 2])), Progress(0, 0.0, 0.0))
    hint, guided = images, images
    with torch.no_grad():
        for layer in (1, 2):
            hint = method.teachers[0].net.get_submodule(f"layer{layer}")(hint)
        for layer in range(1, 7):
            guided = net.student.get_submodule(f"layer{layer}")(guided)
        # The regressor has the teacher's two pieces.
        filters = net.regressor.filters
        assert filters.weight.shape == (2 * 192, 32, 2, 2)
        z = F.conv2d(guided, filters.weight, filters.bias)
        regressed = torch.maximum(z[:, ::2], z[:, 1::2])
    assert hint.shape == regressed.shape == (2, 192, 7, 7)
    assert all((side < 0).any() for side in (hint, guided, regressed))
    torch.testing.assert_close(terms["hint"], 3.0 * 0.5 * (regressed - hint).square().mean())
    terms["hint"].backward()
    assert net.student.layer6[0].filters.weight.grad.abs().sum() > 0 and filters.weight.grad.abs().sum() > 0
    assert net.student.layer7[0].filters.weight.grad is None
    assert set(method.losses(net, Batch(images, torch.tensor([0, 2])), Progress(1, 0.0, 0.3))) == {
        "task",
        "distillation",
    }


@pytest.mark.parametrize(("student", "teacher"), [("fitnet-mnist", "conv-4-5"), ("conv-4-5", "fitnet-mnist")])
def test_a_relu_stands_on_the_side_of_the_net_that_has_it(task, taught, student: str, teacher: str) -> None:
    shape = (1, 28, 28)
    method = FitNets(SupervisedConfig(methods={"fitnets": {"guided_layer": "layer1", "hint_layer": "layer2"}}))
    net = method.build(task(student, shape), [taught(teacher, shape=shape)])
    images = torch.randn(2, *shape)
    term = method.losses(net, Batch(images, torch.tensor([0, 2])), Progress(0, 0.0, 0.0))["hint"]
    own = net.student.layer1(images)
    other = method.teachers[0].net
    if student == "fitnet-mnist":
        guided, hint = net.regressor(own).relu(), other.layer2(F.max_pool2d(other.layer1(images).relu(), 2)).relu()
    else:
        guided, hint = net.regressor(own.relu()), other.layer2(other.layer1(images))
    torch.testing.assert_close(term, 100.0 * 0.5 * (guided - hint).square().mean())
