"""p after training: plain gradient descent on w tells a useful teacher from one of random weights."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import torch
from torch import Tensor, nn

from agents.config import TrainConfig
from agents.engines.optimisers import SharedAdam
from agents.engines.shared import SharedModel, bind
from agents.methods.knowledge_flow import FlowNet, KnowledgeFlowMethod
from kfrl.flow import KnowledgeFlow, Link
from kfrl.losses.knowledge_flow import dependence_loss

UPDATES = 300


class Net(nn.Module):
    """4 inputs, 16 hidden units, 2 outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(4, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.out(self.hidden(x).relu())
        return h


def trained_as_a_run_does(flow: KnowledgeFlow) -> tuple[SharedAdam, Tensor]:
    """The optimiser of a run on games with `UPDATES` updates, and the storage of its gradients."""
    config = TrainConfig(methods={"knowledge-flow": {"layer_weights_lr": 100.0, "fold_at": None}})
    method = KnowledgeFlowMethod(replace(config, steps=int(UPDATES * config.steps_an_update)))
    groups = method.parameter_groups(cast("FlowNet", SimpleNamespace(flow=flow)))
    shared = SharedModel.create(groups, 1)
    grads = torch.zeros_like(shared.parameters)
    bind(groups, shared.parameters, grads)
    return SharedAdam(shared, groups, max_grad_norm=1e9), grads


def p_of_teachers(dependence_coef: float) -> tuple[float, float]:
    """p of the task's own hidden features and of random ones, after a student has learned the task with both."""
    torch.manual_seed(0)
    task, stranger, student = Net(), Net(), Net()
    with torch.no_grad():
        task.hidden.weight.mul_(4.0)
        stranger.hidden.weight.mul_(4.0)
    links = [Link("hidden", name, "hidden") for name in ("useful", "random")]
    flow = KnowledgeFlow(student, {"useful": task, "random": stranger}, links, torch.zeros(1, 4))
    optimiser, grads = trained_as_a_run_does(flow)
    for update in range(UPDATES):
        x = torch.randn(64, 4)
        progress = update / UPDATES
        task_loss = (flow(x) - task(x)).square().sum(1).mean()
        loss = task_loss + dependence_coef * progress * dependence_loss([flow.mixing("hidden")[0]])
        grads.zero_()
        loss.backward()
        optimiser.push(grads, 1e-3)
    _, useful, random = flow.layer_weights("hidden").tolist()
    return useful, random


def test_a_useful_teacher_ends_with_a_larger_p_than_a_random_one() -> None:
    useful, random = p_of_teachers(0.0)
    assert useful > 2 * random


def test_lambda_1_changes_p() -> None:
    without, with_ = sum(p_of_teachers(0.0)), sum(p_of_teachers(1.0))
    assert with_ < 0.8 * without
