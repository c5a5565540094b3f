"""AFS and APS against computations by hand."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from agents.config import TrainConfig
from agents.launch import Session
from agents.sensitivity import (
    STUDENT,
    FisherSums,
    Perturbation,
    Place,
    ProgressiveRun,
    Sensitivity,
    changed_logits,
    feature_shares,
    find_half,
    places,
)
from agents.teachers.formats import Card, save_agent
from kfrl.nets.atari.net import AtariNet
from kfrl.nets.atari.progressive import LateralLayer, ProgressiveNet

Build = Callable[..., ProgressiveNet]


@pytest.fixture
def tiny() -> Build:
    """tiny(5, 4): a progressive net of 3x3 screens and 3 actions, with columns "c1" ... of 5 and 4 units."""

    def build(*widths: int, convs: Sequence[Sequence[int]] = ((2, 2, 1),), hidden: int = 4) -> ProgressiveNet:
        columns = {f"c{k}": AtariNet(2, convs, width, 1, 3) for k, width in enumerate(widths, start=1)}
        net = ProgressiveNet(3, columns, convs, hidden, 1, 3, initial_scalar=0.7)
        with torch.no_grad():
            # Larger logits, so that the policy is not uniform.
            for head in (net.policy.own, net.policy.lateral):
                head.weight.normal_()
        return net.double()

    return build


def screens_and_actions(count: int = 64) -> tuple[Tensor, Tensor]:
    return torch.rand(count, 1, 3, 3, dtype=torch.float64), torch.randint(0, 3, (count,))


def fisher(net: ProgressiveNet, obs: Tensor, actions: Tensor, batch: int = 16) -> dict[Place, Tensor]:
    sums = FisherSums(net)
    for part, chosen in zip(obs.split(batch), actions.split(batch), strict=True):
        assert torch.equal(sums.add(part, lambda logits, chosen=chosen: chosen), chosen)
    return sums.fisher()


def lateral(layer: LateralLayer) -> tuple[Tensor, Tensor, Tensor]:
    """W, U and alpha V of a layer with one column."""
    v = layer.adapters[0].weight.flatten(1) * layer.scalars[0]
    return layer.own.weight.detach(), layer.lateral.weight.detach(), v.detach()


def test_fisher_of_a_softmax_layer_in_closed_form(tiny: Build) -> None:
    net = tiny(5, convs=())
    obs, actions = screens_and_actions()
    found = fisher(net, obs, actions)
    w, u, v = lateral(net.policy)
    with torch.no_grad():
        h, h1 = net.fc(obs.flatten(1)).relu(), net.columns[0].fc(obs.flatten(1)).relu()
        shut = (h1 @ v.T > 0).double()
        logits = h @ w.T + net.policy.own.bias + (h1 @ v.T).relu() @ u.T
        # d log pi(a) / d logits = e_a - pi
        error = F.one_hot(actions, 3) - logits.softmax(1)
        own = h.var(0, correction=0) * (error @ w).square().mean(0)
        theirs = h1.var(0, correction=0) * ((error @ u * shut) @ v).square().mean(0)
    assert own.max() > 0 and theirs.max() > 0
    torch.testing.assert_close(found, {Place("c1", "fc"): theirs, Place(STUDENT, "fc"): own})


def test_fisher_of_maps_sums_over_pixels_and_follows_every_path(tiny: Build) -> None:
    """The column's conv1 is read by the student's fc and by the column's own fc, which the heads read."""
    net = tiny(5)
    obs, actions = screens_and_actions(8)
    found = fisher(net, obs, actions, batch=3)
    (fc_w, fc_u, fc_v), (w, u, v) = lateral(net.fc), lateral(net.policy)
    column = net.columns[0]

    def log_pi(h1_column: Tensor, h1: Tensor, action: Tensor) -> Tensor:
        hidden = column.fc(h1_column.flatten()).relu()
        adapted = torch.einsum("ij,jyx->iyx", fc_v, h1_column).relu().flatten()
        h2 = (fc_w @ h1.flatten() + net.fc.own.bias + fc_u @ adapted).relu()
        logits = w @ h2 + net.policy.own.bias + u @ (v @ hidden).relu()
        return logits.log_softmax(0)[action]

    maps = [module.conv1(obs).relu().detach() for module in (column, net)]
    squares = [torch.zeros(2, dtype=torch.float64) for _ in maps]
    for action, *h in zip(actions, *maps, strict=True):
        gradients = torch.autograd.functional.jacobian(lambda a, b, action=action: log_pi(a, b, action), tuple(h))
        for total, g in zip(squares, gradients, strict=True):
            total += g.square().sum((1, 2)) / len(obs)
    for name, h, square in zip(("c1", STUDENT), maps, squares, strict=True):
        assert square.max() > 0
        torch.testing.assert_close(found[Place(name, "conv1")], h.var((0, 2, 3), correction=0) * square)


def test_a_pass_without_a_change_is_the_nets_own(obs: Tensor) -> None:
    deep = AtariNet(4, ((6, 8, 4), (4, 4, 2), (3, 3, 1)), 11, head="q")
    inner = ProgressiveNet(3, {"deep": deep}, ((5, 8, 8),), 9)
    net = ProgressiveNet(2, {"inner": inner, "deep": deep}, ((4, 8, 8), (6, 4, 2)), 8, initial_scalar=0.5)
    seen = []
    with torch.no_grad():
        same = changed_logits(net, obs, lambda place, h: (seen.append(place), h)[1])
    torch.testing.assert_close(same, net(obs)[0])
    assert {place for row in places(net).values() for place in row} == set(seen)
    assert places(net)["fc"] == [("inner", "fc"), ("deep", "fc"), (STUDENT, "fc")]


def test_a_column_that_nothing_reads_has_no_share(tiny: Build) -> None:
    net = tiny(4, 4)
    for layer in ("fc", "policy"):
        net.get_parameter(f"{layer}.scalars").data[1] = 0.0
    found = Sensitivity(places(net), fisher(net, *screens_and_actions()), {})
    assert found.columns == ["c1", "c2", STUDENT]
    for shares in (found.afs, found.fisher_shares):
        assert shares.shape == (2, 3)
        assert np.all(shares[:, 1] == 0.0)
        assert np.all(shares[:, [0, 2]] > 0.0)
        np.testing.assert_allclose(shares.sum(1), 1.0)


def test_afs_needs_columns_of_one_width(tiny: Build) -> None:
    net = tiny(5)
    found = Sensitivity(places(net), fisher(net, *screens_and_actions()), {})
    assert np.isnan(found.afs).tolist() == [[False, False], [True, True]]
    np.testing.assert_allclose(found.fisher_shares.sum(1), 1.0)
    assert [row["features"] for row in found.rows()] == [2, 2, 5, 4]
    assert len(found.feature_rows()) == 13


def test_afs_of_a_feature_is_its_share_over_columns() -> None:
    first, second = Tensor([1.0, 0.0, 3.0]), Tensor([3.0, 0.0, 1.0])
    a, b = feature_shares([first, second])
    assert a[[0, 2]].tolist() == [0.25, 0.75] and b[[0, 2]].tolist() == [0.75, 0.25]
    assert a[1].isnan() and b[1].isnan()
    row = [Place("c1", "fc"), Place(STUDENT, "fc")]
    heavy = Sensitivity({"fc": row}, {row[0]: Tensor([9.0, 0.0, 1.0]), row[1]: Tensor([1.0, 0.0, 3.0])}, {})
    np.testing.assert_allclose(heavy.afs, [[(0.9 + 0.25) / 2, (0.1 + 0.75) / 2]])
    np.testing.assert_allclose(heavy.fisher_shares, [[10 / 14, 4 / 14]])


@pytest.mark.parametrize(("target", "half"), [(70.0, 8.0), (80.0, 4.0), (130.0, 1 / 8), (30.0, 128.0)])
def test_half_is_found_on_a_line_over_the_logarithm(target: float, half: float) -> None:
    found = find_half(lambda variance: 100.0 - 10.0 * math.log2(variance), target)
    assert found.half == pytest.approx(half)
    assert found.precision == pytest.approx(1 / half)


def test_a_score_that_never_falls_has_no_precision() -> None:
    found = find_half(lambda variance: 100.0, 50.0)
    assert (found.half, found.precision) == (math.inf, 0.0)
    assert sorted(found.scores) == [4.0**n for n in range(6)]
    assert find_half(lambda variance: 0.0, 50.0).half == 4.0**-5


def test_aps_is_the_precisions_share_over_columns() -> None:
    row = [Place("c1", "fc"), Place("c2", "fc"), Place(STUDENT, "fc")]
    found = {place: Perturbation({}, half) for place, half in zip(row, (1.0, math.inf, 1 / 3), strict=True)}
    shares = Sensitivity({"fc": row}, {place: Tensor([1.0]) for place in row}, found).aps
    np.testing.assert_allclose(shares, [[0.25, 0.0, 0.75]])


@pytest.fixture
def run(tmp_path: Path, short_games: None, monkeypatch: pytest.MonkeyPatch) -> ProgressiveRun:
    """The run in `run`, of Pong with an untrained column; its student has made 500 of 1,000 steps."""
    monkeypatch.chdir(tmp_path)
    convs = ((4, 8, 8), (4, 4, 2))
    column = AtariNet(6, convs, 8)
    actions = ("NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE")
    save_agent(tmp_path / "pong.safetensors", column, Card(game="pong", actions=actions, arch=column.arch))
    config = TrainConfig(
        game="Pong",
        method="progressive",
        teachers=str(tmp_path / "pong.safetensors"),
        run_dir=Path("run"),
        steps=1000,
        convs=convs,
        hidden=8,
    )
    started = Session.start(config).run
    started.save_student(started.method().build(started.spec, started.teachers), 500)
    return ProgressiveRun(Path("run"))


def test_play_repeats_with_its_seed(run: ProgressiveRun) -> None:
    one, two, other = ([*run.fisher(25, seed)][-1] for seed in (0, 0, 1))
    assert one.observations == 30
    torch.testing.assert_close(one.fisher(), two.fisher(), rtol=0, atol=0)
    assert not torch.equal(one.fisher()[Place(STUDENT, "fc")], other.fisher()[Place(STUDENT, "fc")])


def test_noise_has_the_variance_that_is_tried(
    run: ProgressiveRun, monkeypatch: pytest.MonkeyPatch, obs: Tensor
) -> None:
    read: list[Tensor] = []
    run.net.policy.own.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    run.net(obs)

    def score(policy: Callable[[Tensor], Tensor], episodes: int, seed: int) -> float:
        policy(obs.repeat(500, 1, 1, 1))
        policy(obs.repeat(500, 1, 1, 1))
        return 0.0 if len(read) > 3 else 10.0

    monkeypatch.setattr(run, "_score", score)
    run.perturb(Place(STUDENT, "fc"), torch.arange(8.0), 5.0, episodes=1, seed=0)
    clean, first, again, second, _ = read
    assert not torch.equal(first, again), "the noise is new in every pass"
    for noisy, variance in ((first, 1.0), (second, 4.0)):
        noise = noisy - clean.repeat(500, 1)
        torch.testing.assert_close(noise.std(0), math.sqrt(variance) * torch.arange(8.0), rtol=0.1, atol=1e-5)
        assert noise.mean(0).abs().max() < 1.0


def test_noise_where_nothing_reads_changes_no_score(run: ProgressiveRun) -> None:
    for layer in ("fc", "policy"):
        run.net.get_parameter(f"{layer}.scalars").zero_()
    clean, random = run.clean_and_random(2, seed=0)
    assert -3.0 <= clean <= 0.0 and -3.0 <= random <= 0.0
    found = run.perturb(Place("pong", "fc"), torch.ones(8), clean - 0.5, episodes=2, seed=0)
    assert set(found.scores.values()) == {clean}
    assert found.half == math.inf
