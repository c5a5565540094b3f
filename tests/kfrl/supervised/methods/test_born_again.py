import math

import pytest
import torch
from torch import nn

from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.methods.base import Progress
from kfrl.supervised.methods.born_again import BornAgain


@pytest.fixture
def method() -> BornAgain:
    return BornAgain(SupervisedConfig(epochs=5, methods={"born-again": {"generations": 2}}))


def test_generation_0_has_no_teacher_and_each_later_one_that_before(method: BornAgain, batch, says) -> None:
    taught = torch.tensor([2.0, 1.0, 1.0]).log().tolist()
    nets = nn.ModuleList([says([9.0, 0.0, 0.0], [9.0, 0.0, 0.0]), says(taught, taught), says([0.0] * 3, [0.0] * 3)])
    assert set(method.losses(nets, batch, Progress(0, 0.0, 0.0))) == {"task"}
    terms = method.losses(nets, batch, Progress(2, 0.0, 0.0))
    kl = 0.5 * math.log(0.5 * 3) + 2 * 0.25 * math.log(0.25 * 3)
    assert {name: float(term.detach()) for name, term in terms.items()} == pytest.approx(
        {"task": math.log(3), "born_again": kl}, rel=1e-5
    )
    terms["born_again"].backward()
    assert nets[1].logits.grad is None and nets[2].logits.grad is not None


def test_generations_are_the_same_net_with_fresh_weights_and_train_one_after_the_other(method, task) -> None:
    nets = method.build(task("mlp-6-dropout"), [])
    assert [net.arch for net in nets] == [nets[0].arch] * 3
    assert not torch.equal(nets[0].fc1.weight, nets[1].fc1.weight)
    stages = method.stages(nets)
    assert [stage.epochs for stage in stages] == [5, 5, 5]
    for index, stage in enumerate(stages):
        assert {id(p) for p in stage.groups[0].parameters} == {id(p) for p in nets[index].parameters()}


def test_the_teacher_is_in_evaluation_mode_and_the_last_generation_is_shipped(method, task) -> None:
    nets = method.build(task("mlp-6-dropout"), [])
    for stage in range(3):
        method.train_mode(nets, stage)
        assert [net.training for net in nets] == [index == stage for index in range(3)]
        assert torch.equal(method.export(nets).fc1.weight, nets[stage].fc1.weight)


def test_earlier_generations_and_ensembles_are_tested_at_the_end(batch, says) -> None:
    method = BornAgain(SupervisedConfig(methods={"born-again": {"generations": 3}}))
    nets = nn.ModuleList(says([float(4 - i), float(i), 0.0]) for i in range(4))
    assert method.others(nets, final=False) == {}
    others = method.others(nets, final=True)
    assert list(others) == ["generation_0", "generation_1", "generation_2", "ensemble_2", "ensemble_3"]
    # As in the paper, generation 0 is no member.
    expected = torch.stack([nets[i].logits.softmax(1) for i in (1, 2)]).mean(0)
    torch.testing.assert_close(others["ensemble_2"](batch.images).exp(), expected)
