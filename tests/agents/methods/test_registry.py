import pytest

from agents.config import TrainConfig
from agents.methods import get_method, method_names
from agents.methods.base import Method, NetSpec
from agents.methods.fine_tune import FineTune
from agents.methods.knowledge_flow import KnowledgeFlowMethod
from kfrl.errors import UserError
from kfrl.nets.atari import AtariNet


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
        ("a3c", 1, "a3c takes no teachers, got 1"),
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
