import pytest
import torch
import torch.nn.functional as F

from kfrl.errors import UserError
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.data.batches import Batch
from kfrl.supervised.methods.attention_transfer import AttentionTransfer
from kfrl.supervised.methods.base import Progress

NOW = Progress(0, 0.0, 0.0)


def attention(maps: torch.Tensor) -> torch.Tensor:
    """By the formula: sums of squares over the channels, divided by their length over the positions."""
    energy = (maps.clamp(min=0) ** 2).sum(1).flatten(1)
    return energy / (energy**2).sum(1, keepdim=True).sqrt()


def test_maps_of_one_size_are_compared_whatever_their_width(task, taught, batch) -> None:
    teacher = taught("conv-5-7")
    method = AttentionTransfer(SupervisedConfig(methods={"attention-transfer": {"attention_weight": 6.0}}))
    net = method.build(task("conv-4"), [teacher])
    assert method.pairs == [("layer1", "layer1")]
    terms = method.losses(net, batch, NOW)
    own, theirs = net.layer1(batch.images), teacher.net.layer1(batch.images)
    distance = ((attention(own) - attention(theirs)) ** 2).mean(1).mean()
    torch.testing.assert_close(terms["attention"], 3.0 * distance)
    torch.testing.assert_close(terms["task"], F.cross_entropy(net(batch.images), batch.labels))
    sum(terms.values()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.layer1.parameters() if parameter.dim() > 1)
    assert all(parameter.grad is None for parameter in teacher.net.parameters())


def test_nets_without_maps_in_common_are_refused(task, taught) -> None:
    with pytest.raises(UserError, match=r"have none in common \(student: no maps; teacher: layer1 8x8\)"):
        AttentionTransfer(SupervisedConfig()).build(task("mlp-6"), [taught("conv-5")])


def test_maxout_maps_have_no_relu(task, taught) -> None:
    shape = (1, 16, 16)
    method = AttentionTransfer(SupervisedConfig(methods={"attention-transfer": {"attention_weight": 2.0}}))
    net = method.build(task("fitnet-1", shape), [taught("fitnet-1", shape=shape)])
    method.pairs = [("layer2", "layer1")]
    images = torch.randn(2, *shape)
    own, theirs = net.layer2(net.layer1(images)), method.teachers[0].net.layer1(images)
    own, theirs = (F.normalize((maps**2).sum(1).flatten(1), dim=1) for maps in (own, theirs))
    terms = method.losses(net, Batch(images, torch.tensor([0, 2])), NOW)
    torch.testing.assert_close(terms["attention"], ((own - theirs) ** 2).mean())
