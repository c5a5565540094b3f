from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agents.config import TrainConfig
from agents.engines.settings import PPOConfig
from agents.methods import get_method, method_names
from agents.methods.base import Method, NetSpec
from agents.methods.fine_tune import FineTune
from agents.methods.knowledge_flow import KnowledgeFlowMethod
from agents.run import resolve
from agents.teachers.formats import Teacher
from kfrl.errors import UserError
from kfrl.nets.atari.net import AtariNet


def test_methods_are_found_by_their_files() -> None:
    assert {"a3c", "fine-tune", "knowledge-flow"} <= set(method_names())
    assert "base" not in method_names()
    assert get_method("a3c") is Method
    assert get_method("fine-tune") is FineTune
    assert get_method("knowledge-flow") is KnowledgeFlowMethod


@pytest.mark.parametrize("name", method_names())
def test_every_method_can_be_made(name: str) -> None:
    assert get_method(name)(TrainConfig()).config == TrainConfig()


@pytest.mark.parametrize("name", ["knowledge_flow", "Knowledge-Flow", "base", "", "../a3c"])
def test_another_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"Unknown method.*Valid: a3c, .*fine-tune, .*knowledge-flow"):
        get_method(name)


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'fine-tune'"):
        get_method("finetune")


@pytest.mark.parametrize(
    ("name", "count", "words"),
    [
        ("a3c", 1, "a3c takes no teachers, got 1. Leave them out, or use --method knowledge-flow"),
        ("pathnet", 1, "pathnet takes no teachers, got 1. It learns source games itself: --source-games"),
        ("fine-tune", 0, "fine-tune takes exactly one teacher .* got 0"),
        ("fine-tune", 2, "fine-tune takes exactly one teacher .* got 2"),
        ("progressive", 0, "progressive needs at least one teacher"),
        ("policy-distillation", 0, "policy-distillation needs at least one teacher"),
        ("actor-mimic", 0, "actor-mimic needs at least one teacher"),
        ("knowledge-flow", 0, "knowledge-flow needs at least one teacher"),
    ],
)
def test_a_number_of_teachers_that_a_method_cannot_use_is_refused(name: str, count: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        get_method(name).check_teachers(name, count)


@pytest.mark.parametrize(
    ("name", "count"), [("a3c", 0), ("fine-tune", 1), ("knowledge-flow", 1), ("knowledge-flow", 3)]
)
def test_a_number_of_teachers_that_a_method_can_use_passes(name: str, count: int) -> None:
    get_method(name).check_teachers(name, count)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("pathnet", {"hidden": 512}, "pathnet does not use --hidden, got 512: .*--module-units"),
        ("pathnet", {"convs": ((4, 8, 8),)}, r"pathnet does not use --convs, got \(\(4, 8, 8\),\): .*--module-convs"),
        (
            "policy-distillation",
            {"gamma": 0.9},
            "policy-distillation does not use --gamma, got 0.9: .*rewards.*Leave it",
        ),
        ("policy-distillation", {"entropy_coef": 0.0}, "does not use --entropy-coef, got 0.0: "),
        ("policy-distillation", {"value_loss_coef": 0.7}, "does not use --value-loss-coef, got 0.7: "),
        ("policy-distillation", {"ppo": PPOConfig(clip_range=0.3)}, "does not use --clip-range, got 0.3: "),
        ("policy-distillation", {"ppo": PPOConfig(gae_lambda=0.9)}, "does not use --gae-lambda, got 0.9: "),
    ],
)
def test_a_setting_without_an_effect_is_refused(name: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        get_method(name).check_unused(name, TrainConfig(**given))


@pytest.mark.parametrize("algo", ["a3c", "a2c", "ppo"])
def test_the_default_of_a_setting_without_an_effect_passes(algo: Any) -> None:
    for name in method_names():
        get_method(name).check_unused(name, TrainConfig(algo=algo))
        # As in the config.yaml of a run.
        get_method(name).check_unused(name, TrainConfig(algo=algo).with_shape())
    get_method("actor-mimic").check_unused("actor-mimic", TrainConfig(algo=algo, gamma=0.9))


def test_a_run_with_a_setting_without_an_effect_is_refused() -> None:
    with pytest.raises(UserError, match="pathnet does not use --hidden"):
        resolve(TrainConfig("Pong", method="pathnet", source_games="Breakout", hidden=512))


def test_teachers_choose_the_method_unless_it_is_named() -> None:
    assert TrainConfig().method_name == "a3c"
    assert TrainConfig(teachers="seaquest").method_name == "knowledge-flow"
    assert TrainConfig(teachers="seaquest", method="fine-tune").method_name == "fine-tune"


def test_scratch_a3c_is_the_plain_net_with_nothing_added() -> None:
    method = Method(TrainConfig(convs=((4, 8, 8),), hidden=8))
    net = method.build(NetSpec("pong", ("NOOP", "FIRE")), ())
    assert isinstance(net, AtariNet)
    assert net.arch["convs"] == [[4, 8, 8]]
    assert net.policy.out_features == 2
    (group,) = method.parameter_groups(net)
    assert [id(p) for p in group.parameters] == [id(p) for p in net.parameters()]
    assert group.lr_scale == 1.0
    exported = method.export(net)
    assert exported is not net
    assert exported.state_dict().keys() == net.state_dict().keys()


@pytest.mark.parametrize("name", method_names())
def test_every_layer_starts_orthogonal_and_every_policy_near_uniform(
    name: str, teacher: Callable[..., Teacher], obs: Tensor
) -> None:
    actions = ("NOOP", "FIRE", "RIGHT")
    taught = teacher(AtariNet(3, ((4, 8, 8),), 8), actions, game="pong")
    pong = NetSpec("pong", actions)
    # Policy distillation imitates the teacher in the run's own game.
    spec = pong if name == "policy-distillation" else NetSpec("breakout", actions, (pong,))
    method = get_method(name)(TrainConfig(method=name, source_steps=10, convs=((4, 8, 8),), hidden=8))
    net = method.build(spec, [] if method.takes_teachers == "none" else [taught])
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    assert layers
    for layer in layers.values():
        rows = layer.weight.detach().flatten(1)
        square = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
        torch.testing.assert_close(square, square[0, 0] * torch.eye(len(square)), atol=1e-5, rtol=0)
        assert layer.bias is None or not layer.bias.any()
    for phase, played in enumerate(method.phases(spec, ())):
        method.begin(net, phase, played.games[0], rank=0)
        logits = method.forward(net, obs, method.features(net, obs)).logits
        assert logits.softmax(1).sub(1 / 3).abs().max() < 0.05
