import math
from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch
from torch import nn

from agents.config import TrainConfig
from agents.engines.a3c import A3CTrainer
from agents.engines.optimisers import RMSpropTF
from agents.engines.shared import SharedModel
from agents.engines.worker import _train
from agents.launch import Session
from agents.run import resolve
from kfrl.errors import UserError
from kfrl.optim.groups import ParameterGroup
from kfrl.training.session import Silent


def model(*values: float) -> tuple[SharedModel, list[ParameterGroup]]:
    groups = [
        ParameterGroup((nn.Parameter(torch.tensor([value])),), scale)
        for value, scale in zip(values, (1.0, 10.0), strict=False)
    ]
    return SharedModel.create(groups, 1), groups


def test_two_steps_by_hand() -> None:
    shared, groups = model(5.0)
    optimiser = RMSpropTF(shared, groups, max_grad_norm=100.0, alpha=0.9, eps=0.01)
    assert optimiser.push(torch.tensor([3.0]), lr=0.1) == 3.0
    # s = 0.9 x 1 + 0.1 x 9 = 1.8
    first = 5.0 - 0.1 * 3.0 / math.sqrt(1.81)
    assert shared.parameters.item() == pytest.approx(first, rel=1e-6)
    optimiser.push(torch.tensor([-2.0]), lr=0.1)
    # s = 0.9 x 1.8 + 0.1 x 4 = 2.02
    assert shared.parameters.item() == pytest.approx(first + 0.1 * 2.0 / math.sqrt(2.03), rel=1e-6)


def test_the_norm_is_clipped_first_and_each_group_has_its_own_rate() -> None:
    shared, groups = model(0.0, 0.0)
    optimiser = RMSpropTF(shared, groups, max_grad_norm=0.5, alpha=1.0, eps=0.0)  # s stays 1
    assert optimiser.push(torch.tensor([3.0, 4.0]), lr=0.1) == 5.0
    assert shared.parameters.tolist() == pytest.approx([-0.03, -0.4])


def test_gradients_that_are_not_finite_change_nothing() -> None:
    shared, groups = model(1.0, 2.0)
    optimiser = RMSpropTF(shared, groups, max_grad_norm=0.5)
    assert optimiser.push(torch.tensor([math.nan, 1.0]), lr=0.1) is None
    assert shared.parameters.tolist() == [1.0, 2.0]
    assert shared.exp_avg_sq.tolist() == [1.0, 1.0]


def test_statistics_of_a_resumed_run_are_kept() -> None:
    shared, groups = model(1.0)
    RMSpropTF(shared, groups, max_grad_norm=1.0).push(torch.tensor([0.1]), lr=0.1)
    before = shared.exp_avg_sq.clone()
    RMSpropTF(shared, groups, max_grad_norm=1.0)
    torch.testing.assert_close(shared.exp_avg_sq, before)
    assert before.item() == pytest.approx(0.9901)


def test_a_lazy_group_without_a_gradient_keeps_its_statistics() -> None:
    groups = [ParameterGroup((nn.Parameter(torch.ones(1)),), lazy=lazy) for lazy in (False, True)]
    shared = SharedModel.create(groups, 1)
    optimiser = RMSpropTF(shared, groups, max_grad_norm=100.0, alpha=0.5)
    optimiser.push(torch.zeros(2), lr=0.1)
    assert shared.exp_avg_sq.tolist() == [0.5, 1.0]
    assert shared.adam_steps.tolist() == [1.0, 0.0]
    optimiser.push(torch.tensor([0.0, 2.0]), lr=0.1)
    assert shared.exp_avg_sq.tolist() == [0.25, 2.5]


def test_a_group_of_plain_gradient_descent_moves_by_its_rate_times_its_gradient_alone() -> None:
    groups = [ParameterGroup((nn.Parameter(torch.ones(1)),), sgd=sgd) for sgd in (None, 0.1)]
    shared = SharedModel.create(groups, 1)
    optimiser = RMSpropTF(shared, groups, max_grad_norm=100.0, alpha=0.5, eps=0.0)
    optimiser.push(torch.tensor([1.0, 4.0]), lr=0.25)
    # s of the first stays 0.5 x 1 + 0.5 x 1; the other moves by 0.1 x 4.
    assert shared.parameters.tolist() == pytest.approx([0.75, 0.6])
    optimiser.push(torch.tensor([1.0, -1.0]), lr=0.25)
    assert shared.parameters.tolist() == pytest.approx([0.5, 0.7])
    assert shared.exp_avg_sq.tolist() == [1.0, 1.0]
    assert shared.adam_steps.tolist() == [2.0, 0.0]


def test_a3cs_statistics_start_from_nothing_and_all_workers_move_them() -> None:
    shared, groups = model(5.0)
    workers = [RMSpropTF.of_a3c(shared, groups, max_grad_norm=40.0) for _ in range(2)]
    workers[0].push(torch.tensor([3.0]), lr=0.1)
    # s = 0.01 x 9 = 0.09
    first = 5.0 - 0.1 * 3.0 / math.sqrt(0.19)
    assert shared.parameters.item() == pytest.approx(first, rel=1e-6)
    workers[1].push(torch.tensor([-2.0]), lr=0.1)
    # s = 0.99 x 0.09 + 0.01 x 4 = 0.1291
    assert shared.parameters.item() == pytest.approx(first + 0.1 * 2.0 / math.sqrt(0.2291), rel=1e-6)


@pytest.mark.parametrize(("optimizer", "momentum"), [("rmsprop", False), ("adam", True)])
def test_a_worker_of_a3c_takes_the_optimiser_that_the_run_names(
    optimizer: str, momentum: bool, tmp_path: Path, worker_here: None
) -> None:
    config = TrainConfig(
        game="Breakout",
        optimizer=optimizer,
        workers=1,
        envs_per_worker=2,
        steps=10,
        convs=((4, 8, 8),),
        hidden=8,
        curve_points=0,
        eval_episodes=0,
        run_dir=tmp_path / "run",
    )
    trainer = A3CTrainer(Session.start(config).run, Silent())
    ours, theirs = Pipe(duplex=False)
    with ours, theirs:
        _train(trainer._job(0), theirs)
    assert trainer.shared.updates.sum() == 1
    assert trainer.shared.exp_avg_sq.any()
    # Only Adam keeps a mean of the gradients.
    assert bool(trainer.shared.exp_avg.any()) == momentum


def test_rmsprop_has_the_rate_of_its_paper_and_only_a3c_takes_it() -> None:
    assert TrainConfig(optimizer="rmsprop", preset="paper").shape.lr == 7e-4
    assert TrainConfig(optimizer="rmsprop", envs_per_worker=4).shape.lr == pytest.approx(1.4e-3)
    assert TrainConfig(optimizer="rmsprop", lr=0.1).shape.lr == 0.1
    with pytest.raises(UserError, match="--algo ppo has its own optimiser, got --optimizer rmsprop"):
        resolve(TrainConfig(game="Breakout", algo="ppo", optimizer="rmsprop"))
