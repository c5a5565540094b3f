import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.config import load_config
from kfrl.errors import UserError
from kfrl.flow import KnowledgeFlow, Link
from kfrl.nets.memory_format import channels_last
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.data.batches import Batch
from kfrl.supervised.methods.base import Progress, Task
from kfrl.supervised.methods.knowledge_flow import KnowledgeFlowMethod
from kfrl.supervised.teachers import adapt

CONFIGS = Path(__file__).parents[4] / "configs" / "supervised"
START = Progress(0, 0.0, 0.0)
ALONE = {"kl_coef": 0.0, "dependence_coef": 0.0, "handover_coef": 0.0, "link_heads": "never"}


def method(**flow: object) -> KnowledgeFlowMethod:
    return KnowledgeFlowMethod(SupervisedConfig(methods={"knowledge-flow": {**ALONE, **flow}}))


@pytest.fixture
def built(task, taught) -> Callable[..., tuple[KnowledgeFlowMethod, KnowledgeFlow]]:
    def build(**flow: object) -> tuple[KnowledgeFlowMethod, KnowledgeFlow]:
        made = method(**flow)
        net = made.build(task("mlp-6-5"), [taught("mlp-7-4")])
        made.schedule(net, START)
        return made, net

    return build


def kl(p: Tensor, q: Tensor) -> float:
    """By torch's own formula, in the other order of arguments."""
    return float(F.kl_div(q.log_softmax(1), p.log_softmax(1), log_target=True, reduction="batchmean").detach())


def test_without_coefficients_the_loss_is_the_cross_entropy_with_links(built, batch: Batch) -> None:
    made, net = built()
    terms = made.losses(net, batch, START)
    assert set(terms) == {"task", "dependence"}
    assert float(terms["task"].detach()) == pytest.approx(
        float(F.cross_entropy(net(batch.images), batch.labels).detach())
    )
    assert not torch.equal(net(batch.images), net.student(batch.images))
    assert float(terms["dependence"].detach()) == 0.0


def test_l_dep_grows_linearly_and_is_the_mean_of_minus_log_p(built, batch: Batch) -> None:
    made, net = built(dependence_coef=0.5, student_weight=0.2)
    at_half = Progress(0, 0.5, 0.5)
    assert float(made.losses(net, batch, at_half)["dependence"].detach()) == pytest.approx(-0.25 * math.log(0.2))


def test_the_reproductions_loss_is_cross_entropy_plus_l_dep_from_the_start(task, taught, batch: Batch) -> None:
    config = load_config(CONFIGS / "reproduction.yaml", SupervisedConfig)
    made = KnowledgeFlowMethod(config)
    net = made.build(task("mlp-6-5"), [taught("mlp-7-4")])
    for at in (0.0, 0.5):
        made.schedule(net, Progress(0, at, at))
        terms = made.losses(net, batch, Progress(0, at, at))
        assert set(terms) == {"task", "dependence"}
        # p is 0.1 to 1 at the start.
        assert float(terms["dependence"].detach()) == pytest.approx(-math.log(0.1 / 1.1), rel=1e-5)


def test_l_kl_compares_with_the_previous_iteration_on_the_current_batch(built, batch: Batch) -> None:
    made, net = built(kl_coef=3.0)
    first = Batch(batch.images + 1, batch.labels)
    assert float(made.losses(net, first, START)["kl"]) == 0.0
    previous = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))
    expected = 3.0 * kl(net(batch.images), _logits(previous, net, batch.images))
    term = made.losses(net, batch, START)["kl"]
    assert float(term.detach()) == pytest.approx(expected, rel=1e-4)
    assert expected > 0.01
    # The next update compares with these parameters, which have not moved since.
    assert float(made.losses(net, batch, START)["kl"].detach()) == pytest.approx(0.0, abs=1e-6)


def _logits(old: KnowledgeFlow, net: KnowledgeFlow, images: Tensor) -> Tensor:
    """What `net` gives with the parameters of `old`: a copy's hooks are those of the original."""
    now = copy.deepcopy(net.state_dict())
    net.load_state_dict(old.state_dict())
    logits = net(images).detach()
    net.load_state_dict(now)
    return logits


def test_theta_old_is_taken_without_dropout_and_leaves_the_modes_alone(task, taught, batch: Batch) -> None:
    made = method(kl_coef=1.0)
    net = made.build(task("mlp-64-dropout"), [taught("mlp-7")])
    net.train()
    modes = [module.training for module in net.student.modules()]
    for _ in range(2):
        made.losses(net, batch, START)
    assert [module.training for module in net.student.modules()] == modes
    assert not any(module.training for teacher in net.teachers.values() for module in teacher.modules())


def test_theta_old_comes_back_in_the_layout_of_the_parameters(task, taught) -> None:
    shape = (3, 8, 8)
    made = method(kl_coef=1.0)
    net = made.build(task("resnet-8", shape), [taught("conv-4", "t", shape)])
    assert channels_last(net)
    saved = {name: p.detach().contiguous().clone() for name, p in net.named_parameters()}
    made.load_state(net, saved)
    layouts = {name: p.stride() for name, p in net.named_parameters()}
    assert {name: old.stride() for name, old in made.state().items()} == layouts
    assert any(saved[name].stride() != layout for name, layout in layouts.items())


@pytest.mark.parametrize("name", ["mlp-64-dropout", "resnet-8"])
def test_l_kl_is_0_where_nothing_has_moved_whatever_training_does_to_a_net(task, taught, name: str) -> None:
    shape = (3, 8, 8)
    made = method(kl_coef=1.0)
    net = made.build(task(name, shape), [taught("conv-4", "t", shape)])
    net.train()
    batch = Batch(torch.randn(40, *shape), torch.zeros(40, dtype=torch.int64))
    values = [float(made.losses(net, batch, START)["kl"].detach()) for _ in range(3)]
    assert values == pytest.approx([0.0] * 3, abs=1e-6)


def test_the_hand_over_teaches_the_student_alone_what_it_says_with_links(built, batch: Batch) -> None:
    made, net = built(handover_coef=2.0)
    alone = net.student(batch.images)
    terms = made.losses(net, batch, START)
    assert float(terms["handover"].detach()) == pytest.approx(2.0 * kl(net(batch.images), alone), rel=1e-4)
    terms["handover"].backward()
    # The linked side is a constant: nothing reaches Q and w.
    assert all(parameter.grad is None for parameter in [*net.transforms.parameters(), *net.mixing.parameters()])
    assert net.student.fc1.weight.grad.abs().sum() > 0


def test_the_student_is_independent_at_the_end_bit_for_bit(built, batch: Batch) -> None:
    made, net = built(handover_start=0.2, independence_at=0.5)
    assert set(made.others(net, final=False)) == {"with_links"}
    made.schedule(net, Progress(0, 0.5, 0.5))
    assert net.independent
    assert made.others(net, final=True) == {}
    assert torch.equal(net(batch.images), made.export(net)(batch.images))
    assert set(made.losses(net, batch, Progress(0, 0.6, 0.6))) == {"task"}
    assert made.metrics(net) == {
        "flow/p_student/fc1": 1.0,
        "flow/p_teacher/pets/fc1": 0.0,
        "flow/p_student/fc2": 1.0,
        "flow/p_teacher/pets/fc2": 0.0,
    }


def test_teachers_may_differ_in_images_classes_and_net_and_never_change(task, taught, batch: Batch) -> None:
    student: Task = task("mlp-6-5")
    colour = taught("mlp-9", "colour", (3, 12, 10), classes=("a", "b"), mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    gray = taught("mlp-7-4-3", "gray")
    teachers = [adapt(teacher, student.shape, student.normalisation) for teacher in (colour, gray)]
    before = [copy.deepcopy(teacher.net.state_dict()) for teacher in teachers]
    made = method(kl_coef=0.1, handover_coef=1.0, dependence_coef=0.1)
    net = made.build(student, teachers)
    groups = made.stages(net)[0].groups
    optimiser = torch.optim.SGD([parameter for group in groups for parameter in group.parameters], 0.1)
    for _ in range(3):
        made.schedule(net, START)
        optimiser.zero_grad()
        torch.stack(list(made.losses(net, batch, START).values())).sum().backward()
        optimiser.step()
    for teacher, state in zip(teachers, before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in teacher.net.state_dict().items())
    start = net(batch.images)
    with torch.no_grad():
        colour.net.fc1.weight.add_(1.0)
    assert not torch.equal(net(batch.images), start)
    net.handover = 1.0
    alone = net(batch.images)
    with torch.no_grad():
        colour.net.fc1.weight.add_(1.0)
    assert torch.equal(net(batch.images), alone)


def test_only_the_student_is_exported(built) -> None:
    made, net = built()
    assert {name: tensor.shape for name, tensor in made.export(net).state_dict().items()} == {
        "fc1.weight": (6, 64),
        "fc1.bias": (6,),
        "fc2.weight": (5, 6),
        "fc2.bias": (5,),
        "head.weight": (3, 5),
        "head.bias": (3,),
    }


def test_w_has_its_own_rate_and_no_weight_decay(built) -> None:
    made, net = built(layer_weights_lr=7.0)
    body, weights = made.stages(net)[0].groups
    assert (body.lr_scale, body.weight_decay) == (1.0, True)
    assert (weights.lr_scale, weights.weight_decay) == (7.0, False)
    assert {id(p) for p in weights.parameters} == {id(p) for p in net.mixing.parameters()}
    assert {id(p) for p in body.parameters} == {
        id(p) for p in [*net.student.parameters(), *net.transforms.parameters()]
    }


def test_the_reproductions_variant_has_a_constant_q_and_p_from_a_tenth_to_one(built) -> None:
    made, net = built(mixing="simplex", independence_at=None)
    trained = {id(parameter) for group in made.stages(net)[0].groups for parameter in group.parameters}
    assert not trained & {id(parameter) for parameter in net.transforms.parameters()}
    assert net.layer_weights("fc1").tolist() == pytest.approx([0.1 / 1.1, 1.0 / 1.1])
    with torch.no_grad():
        for raw in net.mixing.parameters():
            raw.copy_(torch.tensor([3.0, 1.0]))
    made.after_update(net, START)
    assert next(net.mixing.parameters()).tolist() == pytest.approx([0.75, 0.25])


# --- soft targets and heads ---------------------------------------------------------------------------------


@pytest.mark.parametrize("progress", [0.0, 1.0], ids=["with links", "independent"])
def test_soft_targets_are_those_of_the_experts_alone(task, taught, says, batch: Batch, progress: float) -> None:
    links = (Link("fc1", "pets", "fc1"),)
    weights = {"temperature": 2.0, "soft_weight": 3.0, "hard_weight": 0.5}
    made = method(soft_targets=True, independence_at=0.5, links=links, **weights)
    expert, other = taught("mlp-7"), taught("mlp-7", "others", classes=("x", "y"))
    net = made.build(task("mlp-6"), [expert, other])
    now = Progress(0, progress, progress)
    made.schedule(net, now)
    terms, logits = made.losses(net, batch, now), net(batch.images)
    soft = 3.0 * 4.0 * kl(expert.net(batch.images) / 2, logits / 2)
    assert float(terms["distillation"].detach()) == pytest.approx(soft, rel=1e-4)
    assert float(terms["task"].detach()) == pytest.approx(0.5 * float(F.cross_entropy(logits, batch.labels).detach()))


def test_soft_targets_need_an_expert(task, taught) -> None:
    with pytest.raises(UserError, match="--soft-targets compares logits"):
        method(soft_targets=True).build(task(), [taught("mlp-7", classes=("x", "y"))])


@pytest.mark.parametrize(("heads", "expected"), [("never", []), ("expert", ["a"]), ("always", ["a", "b"])])
def test_logits_are_linked_if_asked(task, taught, heads: str, expected: list[str]) -> None:
    teachers = [taught("mlp-7", "a"), taught("mlp-7", "b", classes=("x", "y"))]
    net = method(link_heads=heads).build(task(), teachers)
    assert [link.teacher for link in net.links if link.student == "head"] == expected
    assert all(link.layer == "head" for link in net.links if link.student == "head")


def test_a_link_to_a_layer_that_does_not_exist_names_the_nearest(task, taught) -> None:
    with pytest.raises(UserError, match=r"Unknown layer of teacher 'pets' 'fc9'. Did you mean 'fc1'"):
        method(links=(Link("fc1", "pets", "fc9"),)).build(task(), [taught("mlp-7")])


def test_batch_statistics_are_not_disturbed_by_theta_old(task, taught) -> None:
    images = torch.randn(8, 3, 8, 8)
    made = method(kl_coef=1.0, handover_coef=0.0, independence_at=0.1)
    net = made.build(task("resnet-8", (3, 8, 8)), [taught("resnet-8", "t", (3, 8, 8))])
    net.train()
    now = Progress(0, 0.5, 0.5)
    made.schedule(net, now)
    batch = Batch(images, torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]))
    made.losses(net, batch, now)
    seen = [module for module in net.student.modules() if isinstance(module, nn.BatchNorm2d)]
    made.losses(net, batch, now)
    assert {int(module.num_batches_tracked) for module in seen} == {2}


def test_a_student_of_the_teachers_shape_starts_as_the_teacher(task, taught) -> None:
    made, expert = method(link_heads="expert"), taught("mlp-6-5")
    net = made.build(task("mlp-6-5"), [expert])
    images = [torch.randn(40, *task().shape) for _ in range(10)]
    said = " ".join(made.prepare(net.eval(), images))
    assert "fc1 starts with" in said
    assert "Folded fc1 R2 1.000" in said
    assert "Folded head R2 1.000" in said
    alone = made.export(net)
    torch.testing.assert_close(alone(images[0]), expert.net(images[0]), atol=1e-2, rtol=1e-2)
    # Its own pre-activations are the mixture's, so that p changes nothing.
    torch.testing.assert_close(net(images[0]), alone(images[0]), atol=1e-2, rtol=1e-2)


def test_a_useless_teacher_is_left_out(task, taught) -> None:
    made, (dead, useful) = method(student_weight=0.3), (taught("mlp-7-4", "dead"), taught("mlp-6-5", "useful"))
    with torch.no_grad():
        for parameter in dead.net.parameters():
            parameter.zero_()
    net = made.build(task("mlp-6-5"), [dead, useful])
    said = list(made.prepare(net, [torch.rand(50, *task("mlp-6-5").shape)]))
    assert said[0].startswith("Teacher 'dead' is left out")
    for layer in net.layers:
        assert net.layer_weights(layer).tolist() == pytest.approx([0.3, 0.0, 0.7])


def test_a_residual_stage_and_what_reads_it_are_not_folded(task, taught) -> None:
    shape = (3, 8, 8)
    made = method(link_heads="expert")
    net = made.build(task("resnet-8", shape), [taught("resnet-8", "t", shape)]).eval()
    before = {name: tensor.clone() for name, tensor in net.student.state_dict().items()}
    said = list(made.prepare(net, [torch.randn(40, *shape) for _ in range(10)]))
    assert said[-1].startswith("Not folded: stem, stage1, stage2, stage3, head. A Sequential is not a linear map")
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.student.state_dict().items())


def test_a_fold_can_be_left_out_and_a_short_one_is(task, taught) -> None:
    images = [torch.randn(2, *task().shape) for _ in range(5)]
    made = method(fold=False)
    assert list(made.prepare(made.build(task(), [taught("mlp-7")]).eval(), images)) == []
    made = method()
    net = made.build(task(), [taught("mlp-7")]).eval()
    before = {name: tensor.clone() for name, tensor in net.student.state_dict().items()}
    assert "Not folded: it needs" in list(made.prepare(net, images))[-1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.student.state_dict().items())
