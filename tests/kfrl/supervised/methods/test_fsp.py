import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kfrl.errors import UserError
from kfrl.nets.hooks import layer_shapes
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.data.batches import Batch
from kfrl.supervised.methods.base import Progress
from kfrl.supervised.methods.fsp import Fsp


def build(task, taught, student: str = "resnet-8", teacher: str = "resnet-14", **settings: object):
    method = Fsp(SupervisedConfig(epochs=8, methods={"fsp": {**settings}}))
    return method, method.build(task(student), [taught(teacher)])


def flow(first: Tensor, second: Tensor) -> Tensor:
    """G by its definition, a sum over pixels."""
    total = torch.zeros(len(first), first.shape[1], second.shape[1])
    for s in range(first.shape[2]):
        for t in range(first.shape[3]):
            total += first[:, :, None, s, t] * second[:, None, :, s, t]
    return total / (first.shape[2] * first.shape[3])


def maps(net, images: Tensor) -> list[Tensor]:
    found, h = [], images
    for layer in ("stem", "stage1", "stage2", "stage3"):
        h = net.get_submodule(layer)(h)
        found.append(h.relu())
    return found


@pytest.mark.parametrize(("pool", "function"), [("max", F.max_pool2d), ("avg", F.avg_pool2d)])
def test_the_first_stage_brings_the_flow_matrices_together(task, taught, batch: Batch, pool: str, function) -> None:
    method, net = build(task, taught, fsp_pool=pool, fsp_weight=2.0)
    net.eval()
    expected = torch.zeros(())
    own, wanted = maps(net, batch.images), maps(method.teachers[0].net, batch.images)
    for i in range(3):
        first, second = (flow(side[i] if i == 0 else function(side[i], 2), side[i + 1]) for side in (own, wanted))
        expected = expected + (first - second).square().mean((1, 2)).mean()
    terms = method.losses(net, batch, Progress(0, 0.0, 0.0))
    assert set(terms) == {"fsp"}
    torch.testing.assert_close(terms["fsp"], 2.0 * expected)


def test_the_second_stage_is_the_task_alone(task, taught, batch: Batch) -> None:
    method, net = build(task, taught)
    net.eval()
    terms = method.losses(net, batch, Progress(1, 0.0, 0.5))
    assert set(terms) == {"task"}
    torch.testing.assert_close(terms["task"], F.cross_entropy(net(batch.images), batch.labels))


def test_the_head_waits_for_the_second_stage(task, taught) -> None:
    method, net = build(task, taught)
    first, second = method.stages(net)
    assert {id(p) for p in net.parameters()} - {id(p) for p in first.groups[0].parameters} == {
        id(p) for p in net.head.parameters()
    }
    assert len(second.groups[0].parameters) == len(list(net.parameters()))
    assert (first.epochs, second.epochs) == (2, 6)


def test_a_teacher_of_other_classes_will_do(task, taught) -> None:
    Fsp(SupervisedConfig(epochs=8)).build(task("resnet-8"), [taught("resnet-8", classes=("a", "b"))])


@pytest.mark.parametrize(
    ("student", "teacher", "layers"),
    [
        ("conv-8-8", "conv-8-8-8", ["layer1", "layer2"]),
        ("conv-8-8-8", "conv-8-8", ["layer1", "layer2"]),
        ("resnet-8", "resnet-20", ["stem", "stage1", "stage2", "stage3"]),
        # Of the teacher's two layers with maps of 8x8 the later one; the student has none of 2x2.
        ("conv-16-32", "resnet-8", ["stage1", "stage2"]),
    ],
)
def test_layers_that_correspond_have_maps_of_one_size(task, taught, student: str, teacher: str, layers) -> None:
    method, net = build(task, taught, student, teacher)
    assert method.teacher_layers == layers
    images = torch.zeros(2, 1, 8, 8)
    own = layer_shapes(net, method.layers, images)
    theirs = layer_shapes(method.teachers[0].net, layers, images)
    assert list(own.values()) == [theirs[layer] for layer in layers]


@pytest.mark.parametrize(
    ("student", "teacher", "settings", "words"),
    [
        (
            "resnet-8",
            "resnet-14",
            {"fsp_pool": "none"},
            r"stage1 is 8x8 and stage2 4x4. --fsp-pool max \(the paper's\) or avg",
        ),
        ("resnet-8", "wrn-10-2", {}, r"stage1 of the student has 16, stage1 of teacher 'pets' 32"),
        ("mlp-6", "resnet-8", {}, r"fewer than two layers with maps .*student: none; teacher: 8x8, 4x4, 2x2"),
    ],
)
def test_nets_whose_flow_cannot_be_compared_are_refused(task, taught, student, teacher, settings, words) -> None:
    with pytest.raises(UserError, match=words):
        build(task, taught, student, teacher, **settings)


def test_the_weight_is_that_of_repdistillers_stage() -> None:
    assert Fsp(SupervisedConfig()).own.fsp_weight == 1.0


def test_maxout_maps_have_no_relu(task, taught) -> None:
    images = torch.randn(2, 1, 16, 16)
    method = Fsp(SupervisedConfig(epochs=8))
    net = method.build(task("fitnet-1", (1, 16, 16)), [taught("fitnet-1", shape=(1, 16, 16))])
    matrices = method._matrices(net, ["layer1", "layer2"], images)
    first = net.layer1(images)
    assert (first < 0).any()
    torch.testing.assert_close(matrices, [flow(first, net.layer2(first))])
