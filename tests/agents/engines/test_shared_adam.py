import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from agents.engines.optimisers import SharedAdam
from agents.engines.shared import SharedModel, bind, flatten, named_views
from kfrl.nets.atari.net import AtariNet
from kfrl.optim.groups import ParameterGroup

Net = Callable[[int], AtariNet]
NO_CLIPPING = 1e9


def one_group(net: nn.Module) -> list[ParameterGroup]:
    return [ParameterGroup(tuple(net.parameters()))]


def scalars(*values: float) -> nn.ParameterList:
    return nn.ParameterList([nn.Parameter(torch.tensor([value])) for value in values])


def two_groups(net: nn.ParameterList, lr_scale: float) -> list[ParameterGroup]:
    first, second = net
    return [ParameterGroup((first,)), ParameterGroup((second,), lr_scale)]


def state(shared: SharedModel) -> list[list[float]]:
    return [t.tolist() for t in (shared.parameters, shared.exp_avg, shared.exp_avg_sq, shared.adam_steps)]


# --- true gradients -----------------------------------------------------------------------------------------


def test_true_gradients_1_2_3_4_arrive_as_1_2_3_4() -> None:
    net = scalars(1.0)
    groups = one_group(net)
    shared = SharedModel.create(groups, 1)
    local, grads = flatten(groups), torch.zeros_like(shared.parameters)
    bind(groups, local, grads)
    optimiser = SharedAdam(shared, groups, NO_CLIPPING)
    first, second, arrived = 0.0, 0.0, []
    for gradient in (1.0, 2.0, 3.0, 4.0):
        local.copy_(shared.parameters)
        grads.zero_()
        (gradient * net[0]).sum().backward()
        before = shared.exp_avg.item()
        assert optimiser.push(grads, 1e-3) == pytest.approx(gradient)
        arrived.append((shared.exp_avg.item() - 0.9 * before) / 0.1)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        assert shared.exp_avg.item() == pytest.approx(first, rel=1e-5)
        assert shared.exp_avg_sq.item() == pytest.approx(second, rel=1e-5)
    assert arrived == pytest.approx([1.0, 2.0, 3.0, 4.0], rel=1e-5)


def test_the_first_step_of_adam_by_hand() -> None:
    groups = one_group(scalars(5.0))
    shared = SharedModel.create(groups, 1)
    SharedAdam(shared, groups, NO_CLIPPING).push(torch.tensor([-3.0]), 0.25)
    # Both moments are unbiased to 3 and 9: a step of lr, whatever the gradient's size.
    assert shared.parameters.item() == pytest.approx(5.25, abs=1e-6)
    assert shared.adam_steps.tolist() == [1.0]


def loss(net: nn.Module, obs: Tensor, weight: float) -> Tensor:
    logits, values = net(obs)
    total: Tensor = weight * (logits.square().sum() - values.sum())
    return total


def test_a_worker_trains_as_plain_adam_does(small_net: Net, obs: Tensor) -> None:
    plain = small_net(4)
    net = small_net(4)
    net.load_state_dict(plain.state_dict())
    reference = torch.optim.Adam(plain.parameters())
    groups = one_group(net)
    shared = SharedModel.create(groups, 1)
    local, grads = flatten(groups), torch.zeros_like(shared.parameters)
    bind(groups, local, grads)
    optimiser = SharedAdam(shared, groups, max_grad_norm=1.0)
    norms = []
    for update in range(4):
        batch, lr, weight = obs.roll(update, 2), 1e-2 / (1 + update), 3.0 - update
        reference.zero_grad()
        loss(plain, batch, weight).backward()
        expected = nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        reference.param_groups[0]["lr"] = lr
        reference.step()

        local.copy_(shared.parameters)
        grads.zero_()
        loss(net, batch, weight).backward()
        norms.append(optimiser.push(grads, lr))
        assert norms[-1] == pytest.approx(float(expected), rel=1e-4)
    assert max(norm for norm in norms if norm is not None) > 1.0 > min(norm or 0.0 for norm in norms)
    local.copy_(shared.parameters)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(net.get_parameter(name).detach(), parameter.detach(), rtol=1e-4, atol=1e-5)


# --- one update ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("maximum", "arrives"), [(1.0, [0.6, 0.8]), (5.0, [3.0, 4.0]), (40.0, [3.0, 4.0])])
def test_gradients_are_scaled_down_to_the_maximal_norm(maximum: float, arrives: list[float]) -> None:
    groups = one_group(scalars(0.0, 0.0))
    shared = SharedModel.create(groups, 1)
    assert SharedAdam(shared, groups, maximum).push(torch.tensor([3.0, 4.0]), 1e-3) == pytest.approx(5.0)
    assert (10 * shared.exp_avg).tolist() == pytest.approx(arrives, rel=1e-5)


def test_the_norm_is_that_of_all_groups_together() -> None:
    groups = two_groups(scalars(0.0, 0.0), 1.0)
    shared = SharedModel.create(groups, 1)
    assert SharedAdam(shared, groups, 1.0).push(torch.tensor([3.0, 4.0]), 1e-3) == pytest.approx(5.0)
    assert (10 * shared.exp_avg).tolist() == pytest.approx([0.6, 0.8], rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_update_with_a_non_finite_gradient_changes_nothing(bad: float) -> None:
    groups = two_groups(scalars(1.0, 2.0), 1.0)
    shared = SharedModel.create(groups, 1)
    optimiser = SharedAdam(shared, groups, 40.0)
    assert optimiser.push(torch.tensor([1.0, -1.0]), 0.1) is not None
    before = state(shared)
    assert optimiser.push(torch.tensor([1.0, bad]), 0.1) is None
    assert state(shared) == before
    assert optimiser.push(torch.tensor([1.0, -1.0]), 0.1) is not None
    assert state(shared) != before


def test_a_group_has_its_own_learning_rate() -> None:
    groups = two_groups(scalars(1.0, 1.0), 25.0)
    shared = SharedModel.create(groups, 1)
    optimiser = SharedAdam(shared, groups, NO_CLIPPING)
    references = [torch.tensor([1.0], requires_grad=True) for _ in range(2)]
    plain = [torch.optim.Adam([p], lr=1.0) for p in references]
    for gradient, lr in ((1.0, 1e-3), (-4.0, 2e-3), (0.5, 5e-4)):
        optimiser.push(torch.tensor([gradient, gradient]), lr)
        for reference, adam, scale in zip(references, plain, (1.0, 25.0), strict=True):
            reference.grad = torch.tensor([gradient])
            adam.param_groups[0]["lr"] = lr * scale
            adam.step()
    assert shared.parameters.tolist() == pytest.approx([r.item() for r in references], rel=1e-5)
    assert abs(shared.parameters[1] - 1) > 10 * abs(shared.parameters[0] - 1)
    assert shared.adam_steps.tolist() == [3.0, 3.0]


def test_a_lazy_group_without_a_gradient_is_left_alone_with_its_statistics() -> None:
    eager, lazy = scalars(1.0, 1.0), scalars(1.0, 1.0)
    groups = [ParameterGroup(tuple(eager.parameters())), ParameterGroup(tuple(lazy.parameters()), lazy=True)]
    shared = SharedModel.create(groups, 1)
    optimiser = SharedAdam(shared, groups, NO_CLIPPING)
    optimiser.push(torch.ones(4), 0.1)
    before = {name: getattr(shared, name).clone() for name in ("parameters", "exp_avg", "exp_avg_sq")}
    optimiser.push(torch.zeros(4), 0.1)
    for name, old in before.items():
        new = getattr(shared, name)
        assert torch.equal(new[2:], old[2:]), name
        assert not torch.equal(new[:2], old[:2]), name
    assert shared.adam_steps.tolist() == [2.0, 1.0]
    optimiser.push(torch.tensor([0.0, 0.0, 0.0, 1.0]), 0.1)
    assert not (shared.parameters[2:] == before["parameters"][2:]).any(), "one gradient moves the whole group"


@pytest.mark.parametrize("eps", [1e-8, 1e-5], ids=["a3c", "ppo"])
def test_a_group_of_plain_gradient_descent_moves_by_its_rate_times_its_gradient_alone(eps: float) -> None:
    first, second = scalars(1.0, 1.0)
    groups = [ParameterGroup((first,)), ParameterGroup((second,), lr_scale=7.0, sgd=0.1)]
    shared = SharedModel.create(groups, 1)
    optimiser = SharedAdam(shared, groups, NO_CLIPPING, eps=eps)
    optimiser.push(torch.tensor([3.0, 4.0]), 0.25)
    # Adam's first step is its rate; the other's is 0.1 x 4.
    assert shared.parameters.tolist() == pytest.approx([0.75, 0.6], rel=1e-5)
    optimiser.push(torch.tensor([3.0, -1.0]), 0.25)
    assert shared.parameters[1].item() == pytest.approx(0.7)
    assert shared.exp_avg[1] == shared.exp_avg_sq[1] == 0.0
    assert shared.adam_steps.tolist() == [2.0, 0.0]


# --- shared -------------------------------------------------------------------------------------------------


def test_workers_share_parameters_and_statistics() -> None:
    groups = two_groups(scalars(1.0, 1.0), 2.0)
    shared, alone = (SharedModel.create(groups, 2) for _ in range(2))
    workers = [SharedAdam(shared, groups, 40.0) for _ in range(2)]
    single = SharedAdam(alone, groups, 40.0)
    for update, gradient in enumerate((1.0, 2.0, -3.0, 4.0, 0.5)):
        workers[update % 2].push(torch.tensor([gradient, -gradient]), 0.01)
        single.push(torch.tensor([gradient, -gradient]), 0.01)
    assert shared.adam_steps.tolist() == [5.0, 5.0]
    assert state(shared) == state(alone)


def test_everything_shared_is_in_shared_memory(small_net: Net) -> None:
    shared = SharedModel.create(one_group(small_net(4)), 3)
    tensors = list(vars(shared).values())
    assert len(tensors) == 9
    assert all(tensor.is_shared() for tensor in tensors)
    assert [len(t) for t in (shared.steps, shared.other_steps, shared.updates, shared.dropped)] == [4] * 4


def test_the_global_step_is_that_of_all_workers_and_of_earlier_sessions() -> None:
    shared = SharedModel.create(one_group(scalars(0.0)), 2)
    shared.steps[:] = torch.tensor([1000, 20, 3])
    assert shared.global_step == 1023


# --- flat tensors -------------------------------------------------------------------------------------------


def test_binding_to_flat_storage_changes_no_output(small_net: Net, obs: Tensor) -> None:
    net = small_net(4)
    groups = one_group(net)
    before = [output.detach() for output in net(obs)]
    flat = flatten(groups)
    assert flat.shape == (sum(p.numel() for p in net.parameters()),)
    bind(groups, flat)
    for old, new in zip(before, net(obs), strict=True):
        assert torch.equal(old, new)
    assert net.get_parameter("conv1.weight").is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(flatten(groups), flat)


def test_the_parameters_are_the_flat_storage(small_net: Net, obs: Tensor) -> None:
    net, other = small_net(4), small_net(4)
    groups, others = one_group(net), one_group(other)
    flat = flatten(groups)
    bind(groups, flat)
    flat.copy_(flatten(others))
    assert torch.equal(net(obs)[0], other(obs)[0])
    with torch.no_grad():
        net.get_parameter("fc.bias").fill_(7.0)
    assert int((flat == 7.0).sum()) == 8


def test_the_gradients_are_their_flat_storage(small_net: Net, obs: Tensor) -> None:
    plain, net = small_net(4), small_net(4)
    net.load_state_dict(plain.state_dict())
    groups = one_group(net)
    flat, grads = flatten(groups), torch.zeros(sum(p.numel() for p in net.parameters()))
    bind(groups, flat, grads)
    for module in (plain, net):
        loss(module, obs, 1.0).backward()
    views = named_views(net, groups, grads)
    for name, parameter in plain.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(views[name], parameter.grad)
    assert float(grads.norm()) > 0
    grads.zero_()
    assert all(p.grad is not None and not p.grad.any() for p in net.parameters())


def test_views_of_a_flat_tensor_have_the_parameters_names(small_net: Net) -> None:
    net = small_net(4)
    groups = [ParameterGroup(tuple(net.fc.parameters())), ParameterGroup((net.get_parameter("policy.weight"),))]
    views = named_views(net, groups, flatten(groups))
    assert list(views) == ["fc.weight", "fc.bias", "policy.weight"]
    assert all(torch.equal(view, net.get_parameter(name)) for name, view in views.items())
