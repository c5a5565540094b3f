import math

import pytest
import torch

from agents.config import TrainConfig
from agents.methods.base import Method, NetSpec
from agents.run import resolve
from kfrl.config import Init
from kfrl.errors import UserError
from kfrl.nets.atari.net import AtariNet
from kfrl.nets.init import start


def fresh(name: Init) -> AtariNet:
    net = AtariNet(4, ((16, 8, 4), (32, 4, 2)), 256)
    start(net, name)
    return net


def test_torchs_start_is_uniform_in_one_over_the_root_of_the_inputs() -> None:
    net = fresh("torch")
    for layer, inputs in ((net.conv2, 16 * 4 * 4), (net.fc, 2592)):
        bound = inputs**-0.5
        for tensor in (layer.weight, layer.bias):
            assert tensor.abs().max() <= bound
        assert float(layer.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert layer.bias.abs().max() > 0.8 * bound


@pytest.mark.parametrize(("name", "deviation"), [("xavier", math.sqrt(2 / (2592 + 256))), ("he", math.sqrt(2 / 2592))])
def test_the_others_have_their_papers_deviation_and_no_bias(name: Init, deviation: float) -> None:
    net = fresh(name)
    assert float(net.fc.weight.detach().std()) == pytest.approx(deviation, rel=0.02)
    assert not net.fc.bias.any()


def test_the_flag_reaches_the_student_and_is_refused_where_it_would_do_nothing() -> None:
    spec = NetSpec("breakout", ("NOOP", "FIRE", "RIGHT", "LEFT"))
    students = {}
    for name in ("orthogonal", "torch"):
        torch.manual_seed(0)
        students[name] = Method(TrainConfig(init=name)).student(spec)
    assert not students["orthogonal"].fc.bias.any()
    assert students["torch"].fc.bias.any()
    with pytest.raises(UserError, match=r"progressive has its own initialisation .* --init torch"):
        resolve(TrainConfig(game="Pong", method="progressive", teachers="zoo:pong", init="torch"))
