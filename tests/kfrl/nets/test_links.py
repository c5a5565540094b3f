from collections.abc import Callable

import pytest
from torch import nn

from kfrl.errors import UserError
from kfrl.flow import Link, hidden_layers, links_by_depth
from kfrl.nets.atari.net import AtariNet
from kfrl.nets.images.registry import make_net
from kfrl.nets.links import check_links

Mlp = Callable[..., nn.Sequential]


def atari(convs: int) -> AtariNet:
    return AtariNet(4, ((4, 8, 8), (4, 3, 1), (4, 3, 1))[:convs], 8)


def by_depth(student: nn.Module, teacher: nn.Module) -> list[tuple[str, str]]:
    return [(link.student, link.layer) for link in links_by_depth(student, {"t": teacher})]


def test_a_net_may_name_its_hidden_layers() -> None:
    assert hidden_layers(atari(2)) == ("conv1", "conv2", "fc")


def test_of_any_other_net_all_weighted_layers_but_the_last_are_hidden() -> None:
    body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten())
    net = nn.Sequential(body, nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    assert hidden_layers(net) == ("0.0", "1")


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (2, 2, [("conv1", "conv1"), ("conv2", "conv2"), ("fc", "fc")]),
        (2, 3, [("conv1", "conv1"), ("conv2", "conv3"), ("fc", "fc")]),
        (2, 1, [("conv1", "conv1"), ("conv2", "conv1"), ("fc", "fc")]),
        (3, 2, [("conv1", "conv1"), ("conv2", "conv2"), ("conv3", "conv2"), ("fc", "fc")]),
        (1, 3, [("conv1", "conv2"), ("fc", "fc")]),
    ],
)
def test_layers_meet_at_the_same_relative_depth(student: int, teacher: int, expected: list[tuple[str, str]]) -> None:
    assert by_depth(atari(student), atari(teacher)) == expected


def test_a_very_shallow_teacher_feeds_every_layer(mlp: Mlp) -> None:
    expected = [("0", "0"), ("2", "0"), ("4", "0"), ("6", "0")]
    assert by_depth(mlp(3, 3, 3, 3, 3, 3), mlp(3, 3, 2)) == expected
    expected = [("0", "0"), ("2", "0"), ("4", "0"), ("6", "2"), ("8", "2")]
    assert by_depth(mlp(3, 3, 3, 3, 3, 3, 3), mlp(3, 3, 3, 2)) == expected


def test_every_teacher_is_linked_to_every_layer(mlp: Mlp) -> None:
    links = links_by_depth(mlp(3, 4, 5, 2), {"a": mlp(3, 6, 7, 2), "b": mlp(3, 8, 2)})
    assert links == [Link("0", "a", "0"), Link("0", "b", "0"), Link("2", "a", "2"), Link("2", "b", "0")]


def test_a_student_without_hidden_layers_is_refused(mlp: Mlp) -> None:
    with pytest.raises(UserError, match="The student, a RowLSTM, has no hidden layer"):
        by_depth(make_net("lstm-4", (1, 8, 8), 3), mlp(64, 4, 2))


def test_a_teacher_without_hidden_layers_is_refused(mlp: Mlp) -> None:
    with pytest.raises(UserError, match="'flat'"):
        links_by_depth(mlp(3, 4, 2), {"flat": mlp(3, 2)})


@pytest.mark.parametrize(
    ("link", "words"),
    [
        (Link("conv9", "t", "fc"), ["student layer 'conv9'", "conv1, conv2, fc, policy, value"]),
        (Link("fc", "t", "fcc"), ["layer of teacher 't' 'fcc'", "mean 'fc'", "conv1, fc, policy, value"]),
        (Link("fc", "u", "fc"), ["teacher in a link 'u'", "Valid: t."]),
        (Link("", "t", "fc"), ["student layer ''"]),
    ],
)
def test_a_link_between_layers_that_do_not_exist_lists_those_that_do(link: Link, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        check_links([link], atari(2), {"t": atari(1)})
    assert all(word in str(error.value) for word in words), str(error.value)


def test_good_links_pass() -> None:
    check_links([Link("fc", "t", "conv1"), Link("policy", "t", "value")], atari(2), {"t": atari(1)})
