"""Which channels of its teachers a link starts with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kfrl.errors import UserError
from kfrl.flow import KnowledgeFlow, Link
from kfrl.flow.channels import channel_uses, choose


class Two(nn.Module):
    """Two fully connected layers with ReLU between."""

    def __init__(self, inputs: int, hidden: int, outputs: int = 2) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.last(self.first(x).relu())
        return h


class Maps(nn.Module):
    """A convolution read by a fully connected layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 3, 1), nn.Linear(3 * 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.fc(self.conv(x).relu().flatten(1))
        return h


@torch.no_grad()
def test_a_channels_use_is_its_spread_times_the_norm_of_what_reads_it() -> None:
    net = Two(1, 3)
    net.first.weight.copy_(torch.tensor([[1.0], [2.0], [0.0]]))
    net.first.bias.copy_(torch.tensor([0.0, 0.0, 5.0]))
    net.last.weight.copy_(torch.tensor([[3.0, 0.0, 9.0], [4.0, 1.0, 9.0]]))
    uses = channel_uses(net, "first", torch.tensor([[1.0], [2.0], [3.0]]))
    # Spreads 1, 2, 0; norms 5, 1.
    assert uses is not None
    torch.testing.assert_close(uses, 3.0 * torch.tensor([5.0, 2.0, 0.0]) / 7.0)


@torch.no_grad()
def test_a_fully_connected_layer_reads_all_positions_of_a_channel() -> None:
    net = Maps()
    net.conv.weight.copy_(torch.tensor([1.0, 1.0, 1.0]).view(3, 1, 1, 1))
    net.conv.bias.zero_()
    net.fc.weight.zero_()
    net.fc.weight[0, 4:8] = 1.0
    uses = channel_uses(net, "conv", torch.rand(5, 1, 2, 2))
    assert uses is not None
    assert uses.tolist() == pytest.approx([0.0, 3.0, 0.0])


@torch.no_grad()
def test_a_wide_layer_whose_channels_differ_is_chosen_before_a_narrow_one_of_equal_channels() -> None:
    wide, narrow, obs = Two(1, 8), Two(1, 2), torch.tensor([[1.0], [2.0], [3.0]])
    for net in (wide, narrow):
        net.first.weight.fill_(1.0)
        net.first.bias.zero_()
        net.last.weight.fill_(1.0)
    wide.last.weight[:, :2] = 5.0
    uses = [channel_uses(net, "first", obs) for net in (wide, narrow)]
    # 5 / 2 and 1 / 2 of the wide layer's mean, 1 of the narrow layer's.
    assert choose(uses, 2) == [[0, 1], []]
    assert choose(uses, 4) == [[0, 1], [0, 1]]


def test_the_last_layer_has_no_reader() -> None:
    assert channel_uses(Two(2, 3), "last", torch.rand(4, 2)) is None


def test_the_most_useful_channels_of_all_sources_are_chosen() -> None:
    uses = [torch.tensor([0.5, 0.1, 0.4]), None, torch.tensor([0.45, 0.55, 0.0])]
    assert choose(uses, 3) == [[0], [], [0, 1]]
    # A channel that never changes is not chosen, were there room.
    assert choose(uses, 9) == [[0, 1, 2], [], [0, 1]]
    # Those of an expert come first, and others get what is left.
    assert choose(uses, 3, first=[0]) == [[0, 1, 2], [], []]
    assert choose(uses, 4, first=[0]) == [[0, 1, 2], [], [1]]


def flow_of(*teachers: Two) -> KnowledgeFlow:
    nets = {f"t{index}": teacher for index, teacher in enumerate(teachers)}
    links = [Link("first", name, "first") for name in nets]
    return KnowledgeFlow(Two(2, 4), nets, links, torch.zeros(1, 2))


def test_each_row_of_q_is_one_channel_and_the_lines_say_whose() -> None:
    torch.manual_seed(0)
    teachers = Two(2, 6), Two(2, 3)
    flow, obs = flow_of(*teachers), torch.randn(50, 2)
    lines = flow.choose_channels(obs, flow.links)
    rows = torch.cat([q.get_parameter("weight") for q in flow.transforms], 1)
    assert rows.sum(1).tolist() == [1.0] * 4
    assert sorted(set(rows.flatten().tolist())) == [0.0, 1.0]
    picked = choose([channel_uses(teacher, "first", obs) for teacher in teachers], 4)
    assert [int(q.get_parameter("weight").sum()) for q in flow.transforms] == [len(part) for part in picked]
    assert lines == [
        f"first starts with {len(picked[0])} of 6 channels of t0.first, {len(picked[1])} of 3 channels of t1.first."
    ]


def test_a_teacher_of_the_students_shape_arrives_channel_by_channel() -> None:
    flow = flow_of(Two(2, 4))
    flow.choose_channels(torch.randn(50, 2), flow.links)
    assert torch.equal(flow.transforms[0].get_parameter("weight"), torch.eye(4))


def test_a_strangers_channels_wait_for_an_experts() -> None:
    flow = flow_of(Two(2, 3), Two(2, 3))
    lines = flow.choose_channels(torch.randn(50, 2), flow.links, experts=["t1"])
    assert lines == ["first starts with 1 of 3 channels of t0.first, 3 of 3 channels of t1.first."]


def test_a_constant_teacher_gets_no_row() -> None:
    dead = Two(2, 4)
    nn.init.zeros_(dead.first.weight)
    flow = flow_of(Two(2, 4), dead)
    lines = flow.choose_channels(torch.randn(50, 2), flow.links)
    assert "0 of 4 channels of t1.first" in lines[0]
    assert not flow.transforms[1].get_parameter("weight").any()


def broken_teacher(value: float = float("nan")) -> Two:
    teacher = Two(2, 4)
    nn.init.constant_(teacher.first.weight, value)
    return teacher


@pytest.mark.parametrize(
    ("teacher", "why"),
    [
        (broken_teacher(), "layer first gives numbers that are not finite"),
        (broken_teacher(0.0), "its features are the same on all of the target's observations"),
    ],
)
def test_a_useless_teacher_is_left_out_by_name_for_good(teacher: Two, why: str) -> None:
    flow, obs = flow_of(Two(2, 4), teacher), torch.randn(50, 2)
    reasons = flow.leave_out_useless(obs)
    assert list(reasons) == ["t1"]
    assert reasons["t1"].startswith(f"Teacher 't1' is left out: {why}")
    flow.absent = ()
    assert flow.present_taps == (("t0", "first"),)
    assert flow(obs).isfinite().all()
    # Another process, or the run that is resumed, reads it from the weights.
    other = flow_of(Two(2, 4), teacher)
    other.load_state_dict(flow.state_dict())
    assert other.absent == {"t1"}


def test_useful_teachers_are_all_kept() -> None:
    flow = flow_of(Two(2, 4), Two(2, 4))
    assert (flow.leave_out_useless(torch.randn(50, 2)), flow.absent) == ({}, frozenset())


def test_a_teacher_that_waits_in_a_pool_is_looked_at_too() -> None:
    flow = flow_of(Two(2, 4), broken_teacher())
    flow.absent = {"t1"}
    assert list(flow.leave_out_useless(torch.randn(50, 2))) == ["t1"]


@pytest.mark.parametrize(
    ("others", "needed", "named"), [([], (), "t0"), ([broken_teacher()], (), "t0"), ([Two(2, 4)], ("t0",), "t0")]
)
def test_a_run_without_a_useful_teacher_or_without_its_expert_is_refused(
    others: list[Two], needed: tuple[str, ...], named: str
) -> None:
    flow = flow_of(broken_teacher(), *others)
    with pytest.raises(UserError, match=f"Teacher '{named}': layer first .* Leave it out of --teachers"):
        flow.leave_out_useless(torch.randn(50, 2), needed)


def test_a_vector_that_feeds_a_map_has_no_rows_to_choose_or_to_keep() -> None:
    links = [Link("conv", "t", "conv"), Link("conv", "t", "fc")]
    flow = KnowledgeFlow(Maps(), {"t": Maps()}, links, torch.zeros(1, 1, 2, 2))
    (line,) = flow.choose_channels(torch.randn(50, 1, 2, 2), flow.links)
    assert "3 of 3 channels of t.conv, t.fc left out of the choice" in line
    assert flow.own_rows("conv") is None
