"""The fold against hand arithmetic, NumPy's least squares and the exact first layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.errors import UserError
from kfrl.flow import KnowledgeFlow, Link
from kfrl.flow.fold import Moments, cases, drop_biases, fold, foldable_layers, input_of, observations_needed
from kfrl.nets.atari.net import AtariNet


class Small(nn.Module):
    """A convolution, a fully connected layer and a head; screens of 3 x 9 x 9."""

    def __init__(self, channels: int = 4, units: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.fc = nn.Linear(channels * 25, units)
        self.out = nn.Linear(units, 2)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.out(self.fc(self.conv(x).relu().flatten(1)).relu())
        return h


@pytest.fixture
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(60, 3, 9, 9, generator=generator) for _ in range(10)]


def linked(seed: int = 0, p: float = 0.25) -> tuple[KnowledgeFlow, Small, Small]:
    torch.manual_seed(seed)
    student, teacher = Small(), Small(channels=5)
    links = [Link("conv", "t", "conv")]
    return KnowledgeFlow(student, {"t": teacher}, links, torch.zeros(1, 3, 9, 9), student_weight=p), student, teacher


def test_moments_solve_the_ridge_regression_of_the_textbook() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(50, 4)) + 2.0, rng.normal(size=(50, 3))
    moments = Moments(4, 3)
    for part in np.split(np.arange(50), [10, 37]):
        moments.add(torch.from_numpy(x[part]), torch.from_numpy(y[part]))
    with_one = np.hstack([x, np.ones((50, 1))])
    damping = 0.01 * (x**2).sum() / 4 * np.diag([1.0, 1.0, 1.0, 1.0, 0.0])
    expected = np.linalg.solve(with_one.T @ with_one + damping, with_one.T @ y)
    solution = moments.solve(0.01)
    np.testing.assert_allclose(solution.numpy(), expected, rtol=1e-8)
    errors = y - with_one @ expected
    r2 = 1.0 - (errors**2).sum() / ((y - y.mean(0)) ** 2).sum()
    assert moments.r2(solution) == pytest.approx(r2, abs=1e-9)
    assert moments.cases == 50


def test_the_cases_of_a_convolution_are_its_patches(batches: list[Tensor]) -> None:
    conv = Small().conv
    x = batches[0][:2]
    patches, outputs = cases(conv, x, conv(x))
    assert patches.shape == (2 * 25, 27)
    assert conv.bias is not None
    torch.testing.assert_close(patches @ conv.weight.flatten(1).T + conv.bias, outputs)
    # The case in the middle of the first image: output (2, 2) reads the pixels from 3 to 5.
    torch.testing.assert_close(patches[12], x[0, :, 3:6, 3:6].flatten())


def test_a_large_maps_patches_are_taken_in_turns() -> None:
    conv = nn.Conv2d(1, 1, 1)
    x = torch.arange(400.0).view(1, 1, 20, 20)
    taken = [cases(conv, x, x, batch)[0].flatten().tolist() for batch in range(6)]
    assert all(60 <= len(part) <= 70 for part in taken)
    assert sorted(value for part in taken for value in part) == list(range(400))


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_the_patches_are_those_of_pytorch_whatever_the_convolution_and_the_memory(memory: torch.memory_format) -> None:
    conv = nn.Conv2d(3, 5, (2, 3), stride=(1, 2), padding=(0, 2), dilation=(3, 1))
    x = torch.randn(4, 6, 16, 31)[:, 1:4].to(memory_format=memory)
    patches, outputs = cases(conv, x, conv(x), 1)
    expected = F.unfold(x, conv.kernel_size, conv.dilation, (0, 2), conv.stride)  # (images, numbers, positions)
    assert torch.equal(patches, expected[:, :, 1 :: expected.shape[2] // 64].transpose(1, 2).flatten(0, 1))
    assert conv.bias is not None
    torch.testing.assert_close(patches @ conv.weight.flatten(1).T + conv.bias, outputs)


@pytest.mark.parametrize(
    ("convolution", "words"),
    [
        ({"groups": 3}, "3 groups"),
        ({"padding": "same"}, "padding 'same'"),
        ({"padding": 1, "padding_mode": "reflect"}, "padding mode reflect"),
    ],
)
def test_a_convolution_that_is_not_fitted_patch_by_patch_is_refused_by_name(
    convolution: dict[str, Any], words: str
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, **convolution), nn.Flatten(), nn.LazyLinear(2))
    example = torch.zeros(1, 3, 9, 9)
    net(example)
    with pytest.raises(UserError, match=f"Layer 1 of the student has {words}: a fold"):
        foldable_layers(net, ["0"], example)
    assert foldable_layers(net, ["3"], example) == ["3"]


def test_a_first_layer_folds_exactly(batches: list[Tensor]) -> None:
    flow, student, teacher = linked()
    own, theirs = flow.layer_weights("conv").tolist()
    q = flow.transforms[0].get_parameter("weight")[:, :, 0, 0]
    weight = own * student.conv.weight + theirs * torch.einsum("st,tchw->schw", q, teacher.conv.weight)
    assert student.conv.bias is not None
    assert teacher.conv.bias is not None
    bias = own * student.conv.bias + theirs * q @ teacher.conv.bias
    plain = flow.export()
    (folded,) = fold(plain, ["conv"], flow.mixture, batches)
    torch.testing.assert_close(plain.get_parameter("conv.weight"), weight, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(plain.get_parameter("conv.bias"), bias, atol=1e-5, rtol=1e-4)
    assert folded.r2 == pytest.approx(1.0, abs=1e-6)
    # Every later layer reads what it read before, so the whole net says the same.
    torch.testing.assert_close(plain(batches[0]), flow(batches[0]), atol=1e-4, rtol=1e-4)


def test_a_student_that_trusts_itself_alone_stays_as_it_is(batches: list[Tensor]) -> None:
    flow, student, _ = linked(p=0.999999)
    plain = flow.export()
    layers = foldable_layers(student, flow.layers, batches[0][:1])
    list(fold(plain, layers, flow.mixture, batches))
    torch.testing.assert_close(plain(batches[1]), student(batches[1]), atol=1e-3, rtol=1e-3)


def test_later_layers_read_the_layers_that_are_folded_already(batches: list[Tensor]) -> None:
    flow, _, _ = linked()
    plain = flow.export()
    folded = list(fold(plain, ["conv", "fc", "out"], flow.mixture, batches))
    assert [layer.layer for layer in folded] == ["conv", "fc", "out"]
    x = torch.cat([input_of(plain, "fc", obs) for index, obs in enumerate(batches) if index % 5 != 4]).double()
    y = torch.cat([flow.mixture("fc", obs) for index, obs in enumerate(batches) if index % 5 != 4]).double()
    x = torch.cat([x, torch.ones(len(x), 1)], 1)
    expected = torch.linalg.lstsq(x, y).solution
    torch.testing.assert_close(plain.get_parameter("fc.weight").double(), expected[:-1].T, atol=1e-3, rtol=1e-2)


def test_nothing_but_the_named_layers_changes(batches: list[Tensor]) -> None:
    flow, _, _ = linked()
    plain = flow.export()
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    list(fold(plain, ["conv"], flow.mixture, batches))
    changed = [name for name, tensor in plain.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed == ["conv.weight", "conv.bias"]


def test_from_the_first_linked_layer_on_all_layers_are_folded() -> None:
    net = AtariNet(3)
    example = torch.zeros(1, 4, 84, 84, dtype=torch.uint8)
    assert foldable_layers(net, ["conv1", "policy"], example) == ["conv1", "conv2", "fc", "policy", "value"]
    assert foldable_layers(net, ["fc"], example) == ["fc", "policy", "value"]
    assert observations_needed(net, ["conv2", "fc", "policy"]) == {"fc": 3242, "policy": 322}


def test_a_layer_that_is_no_linear_map_is_refused_by_name() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    with pytest.raises(UserError, match=r"Layer 1 of the student is a ReLU.*: 0, 2"):
        foldable_layers(net, ["1"], torch.zeros(1, 3))


def test_too_few_observations_are_refused(batches: list[Tensor]) -> None:
    flow, _, _ = linked()
    with pytest.raises(UserError, match=r"fc has 80 cases for 101 unknowns .* from 100 .* about 127 observations"):
        list(fold(flow.export(), ["fc"], flow.mixture, [batch[:20] for batch in batches[:5]]))


def test_fewer_than_five_batches_are_divided_anew(batches: list[Tensor]) -> None:
    flow, _, _ = linked()
    observations = torch.cat(batches)
    plain, expected = flow.export(), flow.export()
    (folded,) = fold(plain, ["fc"], flow.mixture, [observations])
    (same,) = fold(expected, ["fc"], flow.mixture, observations.tensor_split(5))
    assert folded == same
    assert folded.cases == len(observations) * 4 // 5
    torch.testing.assert_close(plain.get_parameter("fc.weight"), expected.get_parameter("fc.weight"))


@torch.no_grad()
def test_channels_that_no_teacher_feeds_keep_the_students_own_weights(batches: list[Tensor]) -> None:
    flow, student, _ = linked(p=0.01)
    q = flow.transforms[0].get_parameter("weight")
    fed = [0, 2]
    q[[row for row in range(len(q)) if row not in fed]] = 0.0
    assert flow.own_rows("fc") is None
    plain = flow.export()
    list(fold(plain, ["conv"], flow.mixture, batches, flow.own_rows))
    (obs,) = batches[:1]
    own, new, mixed = student.conv(obs), plain.get_submodule("conv")(obs), flow.mixture("conv", obs)
    for row in range(len(q)):
        torch.testing.assert_close(new[:, row], (mixed if row in fed else own)[:, row], atol=1e-3, rtol=1e-3)
    flow.absent = frozenset({"t"})
    assert flow.own_rows("conv") is None


def test_r2_and_the_ridge_are_judged_on_cases_that_were_held_out() -> None:
    # 48 cases for 41 unknowns: a fit of noise looks good on the cases that it was made from.
    batches = list(torch.randn(60, 40).split(12))
    noise = {id(batch): torch.randn(12, 8) for batch in batches}
    student = nn.Sequential(nn.Linear(40, 8))
    (folded,) = fold(student, ["0"], lambda layer, obs: noise[id(obs)], batches)
    assert folded.ridge == 0.1
    assert folded.r2 < 0.0
    fitted, targets = torch.cat(batches[:4]), torch.cat([noise[id(batch)] for batch in batches[:4]])
    errors, deviations = targets - student(fitted), targets - targets.mean(0)
    assert 1 - (errors**2).sum() / (deviations**2).sum() > 0.5


def test_a_constant_target_is_folded_exactly_in_spite_of_rounding(batches: list[Tensor]) -> None:
    flow, _, _ = linked()
    (folded,) = fold(flow.export(), ["fc"], lambda layer, obs: torch.full((len(obs), 6), 4.9), batches)
    assert folded.r2 == pytest.approx(1.0, abs=1e-3)


def test_a_target_that_is_not_finite_is_refused(batches: list[Tensor]) -> None:
    flow, _, _ = linked()
    with pytest.raises(UserError, match="The fold of layer fc: its links bring numbers that are not finite"):
        list(fold(flow.export(), ["fc"], lambda layer, obs: torch.full((len(obs), 6), torch.nan), batches))


def test_a_layer_without_a_bias_stays_without_one(batches: list[Tensor]) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            h: Tensor = self.conv(x)
            return h

    wanted, plain = Plain(), Plain()
    (folded,) = fold(plain, ["conv"], lambda layer, obs: wanted(obs), batches)
    torch.testing.assert_close(plain.conv.weight, wanted.conv.weight, atol=1e-4, rtol=1e-3)
    assert plain.conv.bias is None
    assert folded.r2 == pytest.approx(1.0, abs=1e-6)


def test_without_biases_the_last_layer_is_as_large_as_that_of_a_fresh_net(batches: list[Tensor]) -> None:
    torch.manual_seed(0)
    student, fresh = Small(), Small()
    with torch.no_grad():
        student.fc.weight.mul_(7.0)
        student.conv.bias.fill_(-3.0)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    scale = drop_biases(student, ["conv", "fc"], fresh, batches[0])
    assert not student.conv.bias.any()
    assert not student.fc.bias.any()
    assert torch.equal(student.conv.weight, before["conv.weight"])
    torch.testing.assert_close(student.fc.weight, scale * before["fc.weight"])

    def size(net: Small) -> float:
        hidden = net.fc(net.conv(batches[0]).relu().flatten(1))
        return float((hidden**2).mean().sqrt().detach())

    assert size(student) == pytest.approx(size(fresh), rel=1e-5)


def test_a_layer_that_says_nothing_keeps_its_weights(batches: list[Tensor]) -> None:
    student = Small()
    nn.init.zeros_(student.conv.weight)
    assert drop_biases(student, ["conv", "fc"], Small(), batches[0]) == 1.0
