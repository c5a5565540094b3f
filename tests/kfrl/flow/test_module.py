import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kfrl.errors import UserError
from kfrl.flow import KnowledgeFlow, Link, links_by_depth
from kfrl.nets.atari.net import AtariNet
from kfrl.nets.hooks import with_features

Mlp = Callable[..., nn.Sequential]


def link_up(student: nn.Module, teachers: dict[str, nn.Module], example: Tensor) -> KnowledgeFlow:
    return KnowledgeFlow(student, teachers, links_by_depth(student, teachers), example)


def randomise(flow: KnowledgeFlow) -> None:
    """Q and w as training leaves them: neither identity nor equal shares."""
    with torch.no_grad():
        for parameter in [*flow.transforms.parameters(), *flow.mixing.parameters()]:
            parameter.normal_()


@torch.no_grad()
def perturb(net: nn.Module) -> None:
    for parameter in net.parameters():
        parameter.add_(torch.randn_like(parameter))


@torch.no_grad()
def checksum(net: nn.Module) -> list[list[float]]:
    return [tensor.flatten().tolist() for tensor in net.state_dict().values()]


@pytest.fixture
def vectors() -> Tensor:
    return torch.randn(6, 3)


@pytest.fixture
def tiny(mlp: Mlp, vectors: Tensor) -> KnowledgeFlow:
    """A 3-4-2 student with two teachers of other shapes."""
    flow = link_up(mlp(3, 4, 2), {"a": mlp(3, 5, 6, 2), "b": mlp(3, 7, 1)}, vectors)
    randomise(flow)
    return flow


@pytest.fixture
def atari() -> KnowledgeFlow:
    """A 2-convolution student with a teacher of 3 convolutions and other sizes."""
    student = AtariNet(4, ((4, 8, 8), (6, 4, 2)), 16)
    teacher = AtariNet(7, ((5, 8, 4), (8, 4, 2), (7, 3, 1)), 12)
    flow = link_up(student, {"t": teacher}, torch.zeros(1, 4, 84, 84, dtype=torch.uint8))
    randomise(flow)
    return flow


# --- the mixture --------------------------------------------------------------------------------------------


def test_the_mixture_by_hand(mlp: Mlp) -> None:
    student, teacher = mlp(2, 2, 1), mlp(2, 3, 1)
    flow = KnowledgeFlow(student, {"t": teacher}, [Link("0", "t", "0")], torch.zeros(1, 2), student_weight=0.25)
    given: dict[nn.Module, dict[str, list[Any]]] = {
        student: {"0.weight": [[1, 2], [0, -1]], "0.bias": [0, 1], "2.weight": [[1, 10]], "2.bias": [0.5]},
        teacher: {"0.weight": [[1, 0], [0, 1], [1, 1]], "0.bias": [0, -4, 0]},
        flow.transforms: {"0.weight": [[1, 1, 0], [0, 2, 1]]},
    }
    for module, tensors in given.items():
        module.load_state_dict({name: torch.tensor(v, dtype=torch.float32) for name, v in tensors.items()}, False)
    # x = (1, 2): student z = (5, -1); teacher z = (1, -2, 3); Q z = (-1, -1).
    # Mixture 1/4 (5, -1) + 3/4 (-1, -1) = (0.5, -1); after ReLU (0.5, 0); output 0.5 + 0.5.
    # Features taken after the teacher's ReLU would give Q h = (1, 3) and another output.
    assert flow(torch.tensor([[1.0, 2.0]])).item() == pytest.approx(1.0, abs=1e-6)


def dense(net: nn.Module, layer: str, x: np.ndarray) -> np.ndarray:
    weights, bias = (net.get_submodule(layer).get_parameter(name).detach().numpy() for name in ("weight", "bias"))
    return np.asarray(x @ weights.T + bias)


def softmax(values: Tensor) -> np.ndarray:
    exponentials = np.exp(values.detach().numpy())
    return np.asarray(exponentials / exponentials.sum())


def test_several_teachers_of_different_shapes(mlp: Mlp, vectors: Tensor) -> None:
    student, a, b = mlp(3, 4, 5, 2), mlp(3, 5, 6, 7, 2), mlp(3, 8, 2)
    flow = link_up(student, {"a": a, "b": b}, vectors)
    randomise(flow)
    assert [(link.student, link.teacher, link.layer) for link in flow.links] == [
        ("0", "a", "2"),
        ("0", "b", "0"),
        ("2", "a", "4"),
        ("2", "b", "0"),
    ]
    x = vectors.numpy()
    za2 = dense(a, "2", np.maximum(dense(a, "0", x), 0))
    za4 = dense(a, "4", np.maximum(za2, 0))
    zb0 = dense(b, "0", x)
    q = [parameter.detach().numpy() for parameter in flow.transforms.parameters()]
    p, r = (softmax(w) for w in flow.mixing.parameters())
    h = np.maximum(p[0] * dense(student, "0", x) + p[1] * za2 @ q[0].T + p[2] * zb0 @ q[1].T, 0)
    h = np.maximum(r[0] * dense(student, "2", h) + r[1] * za4 @ q[2].T + r[2] * zb0 @ q[3].T, 0)
    np.testing.assert_allclose(flow(vectors).detach(), dense(student, "4", h), rtol=1e-4, atol=1e-5)


def test_the_mixture_on_feature_maps(atari: KnowledgeFlow, obs: Tensor) -> None:
    s, t = (dict(net.state_dict()) for net in (atari.student, atari.teachers["t"]))
    q = [parameter.detach().flatten(1) for parameter in atari.transforms.parameters()]
    p = [softmax(w) for w in atari.mixing.parameters()]
    x = obs / 255

    def mix(layer: int, own: Tensor, teachers: Tensor) -> Tensor:
        if teachers.dim() == 4:
            teachers = torch.einsum("oc,bchw->bohw", q[layer], teachers)
            teachers = F.interpolate(teachers, own.shape[2:], mode="bilinear", align_corners=False)
        else:
            teachers = teachers @ q[layer].T
        return F.relu(float(p[layer][0]) * own + float(p[layer][1]) * teachers)

    z1 = F.conv2d(x, t["conv1.weight"], t["conv1.bias"], stride=4)
    z2 = F.conv2d(z1.relu(), t["conv2.weight"], t["conv2.bias"], stride=2)
    z3 = F.conv2d(z2.relu(), t["conv3.weight"], t["conv3.bias"], stride=1)
    z4 = F.linear(z3.relu().flatten(1), t["fc.weight"], t["fc.bias"])
    h = mix(0, F.conv2d(x, s["conv1.weight"], s["conv1.bias"], stride=8), z1)
    h = mix(1, F.conv2d(h, s["conv2.weight"], s["conv2.bias"], stride=2), z3)
    h = mix(2, F.linear(h.flatten(1), s["fc.weight"], s["fc.bias"]), z4)
    logits, values = atari(obs)
    torch.testing.assert_close(logits, F.linear(h, s["policy.weight"], s["policy.bias"]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values, F.linear(h, s["value.weight"], s["value.bias"])[:, 0], rtol=1e-4, atol=1e-5)


def test_several_layers_of_one_teacher_may_feed_one_layer(mlp: Mlp, vectors: Tensor) -> None:
    student, teacher = mlp(3, 4, 2), mlp(3, 5, 6, 2)
    links = [Link("0", "t", "0"), Link("0", "t", "2")]
    flow = KnowledgeFlow(student, {"t": teacher}, links, vectors)
    randomise(flow)
    assert flow.layers == ("0",)
    assert flow.candidates("0") == tuple(links)
    x = vectors.numpy()
    z0 = dense(teacher, "0", x)
    z2 = dense(teacher, "2", np.maximum(z0, 0))
    (w,) = flow.mixing.parameters()
    p, (q0, q1) = softmax(w), (parameter.detach().numpy() for parameter in flow.transforms.parameters())
    h = np.maximum(p[0] * dense(student, "0", x) + p[1] * z0 @ q0.T + p[2] * z2 @ q1.T, 0)
    np.testing.assert_allclose(flow(vectors).detach(), dense(student, "2", h), rtol=1e-4, atol=1e-5)


def test_p_sums_to_one_at_every_stage_of_the_hand_over(tiny: KnowledgeFlow) -> None:
    p = tiny.layer_weights("0").detach()
    for handover in (0.0, 0.3, 0.999):
        tiny.handover = handover
        expected = (1 - handover) * p + handover * torch.tensor([1.0, 0.0, 0.0])
        torch.testing.assert_close(tiny.layer_weights("0").detach(), expected)
        assert sum(tiny.layer_weights("0").tolist()) == pytest.approx(1.0)
    tiny.handover = 1.0
    assert tiny.layer_weights("0").tolist() == [1.0, 0.0, 0.0]


def test_the_hand_over_takes_part_in_the_mixture(tiny: KnowledgeFlow, vectors: Tensor) -> None:
    tiny.handover = 0.5
    output = tiny(vectors).detach()
    weights = tiny.layer_weights("0").detach()
    tiny.handover = 0.0
    with torch.no_grad():
        next(iter(tiny.mixing.parameters())).copy_(weights.log())
    torch.testing.assert_close(tiny(vectors).detach(), output)


def test_student_q_and_w_all_get_gradients(tiny: KnowledgeFlow, vectors: Tensor) -> None:
    tiny(vectors).square().sum().backward()
    for name, parameter in tiny.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name


# --- any modules --------------------------------------------------------------------------------------------


def test_nested_layers_under_any_name(mlp: Mlp, vectors: Tensor) -> None:
    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Linear(3, 4))
            self.keys = nn.Linear(4, 4)
            self.out = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.out(torch.tanh(self.keys(torch.tanh(self.stem(x)))))}

    student, teacher = Student(), mlp(3, 5, 2)
    plain = student(vectors)["logits"]
    flow = link_up(student, {"t": teacher}, vectors)
    randomise(flow)
    assert flow.layers == ("stem.0", "keys")
    x = vectors.numpy()
    p, r = (softmax(flow.mixing.get_parameter(f"raw.{name}")) for name in ("stem/0", "keys"))
    q = [parameter.detach().numpy() for parameter in flow.transforms.parameters()]
    z = dense(teacher, "0", x)
    h = np.tanh(p[0] * dense(student, "stem.0", x) + p[1] * z @ q[0].T)
    h = np.tanh(r[0] * dense(student, "keys", h) + r[1] * z @ q[1].T)
    np.testing.assert_allclose(flow(vectors)["logits"].detach(), dense(student, "out", h), rtol=1e-4, atol=1e-5)
    flow.handover = 1.0
    assert torch.equal(flow(vectors)["logits"], plain)


def test_building_leaves_the_student_as_it_was(mlp: Mlp, vectors: Tensor) -> None:
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 2))
    student[3].eval()
    before = copy.deepcopy(student)
    link_up(student, {"t": mlp(3, 5, 2)}, vectors[:1])
    assert checksum(student) == checksum(before)
    assert [m.training for m in student.modules()] == [m.training for m in before.modules()]


def test_features_are_pre_activations_even_where_the_activation_is_in_place(mlp: Mlp, vectors: Tensor) -> None:
    layers = nn.Linear(3, 5), nn.ReLU(inplace=True), nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)
    flow = link_up(mlp(3, 4, 4, 2), {"t": nn.Sequential(*layers)}, vectors)
    first, second = flow.teacher_features(vectors)
    z = dense(layers[0], "", vectors.numpy())
    np.testing.assert_allclose(first, z, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(second, dense(layers[2], "", np.maximum(z, 0)), rtol=1e-5, atol=1e-6)


def test_a_student_with_in_place_activations_trains(mlp: Mlp, vectors: Tensor) -> None:
    torch.manual_seed(3)
    plain = mlp(3, 4, 2)
    in_place = nn.Sequential(plain[0], nn.ReLU(inplace=True), plain[2])
    teacher = mlp(3, 5, 2)
    outputs = []
    for student in (plain, in_place):
        flow = link_up(copy.deepcopy(student), {"t": teacher}, vectors)
        flow.transforms.load_state_dict({"0.weight": torch.eye(4, 5)})
        flow(vectors).sum().backward()
        outputs.append([p.grad for p in flow.parameters()])
    torch.testing.assert_close(outputs[0], outputs[1])


@pytest.mark.parametrize(
    ("link", "words"),
    [
        (Link("conv1", "a", "0"), ["student layer 'conv1'", "0, 1, 2"]),
        (Link("0", "a", "fc"), ["layer of teacher 'a' 'fc'", "0, 1, 2, 3, 4"]),
        (Link("0", "c", "0"), ["teacher in a link 'c'", "a, b"]),
    ],
)
def test_a_link_to_nowhere_is_refused(mlp: Mlp, vectors: Tensor, link: Link, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        KnowledgeFlow(mlp(3, 4, 2), {"a": mlp(3, 5, 6, 2), "b": mlp(3, 7, 1)}, [link], vectors)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_the_link_table_tells_shapes_and_sizes(atari: KnowledgeFlow) -> None:
    rows = [
        (str(row.link), row.teacher_shape, row.student_shape, row.transform, row.parameters)
        for row in atari.link_table()
    ]
    assert rows == [
        ("t.conv1 -> conv1", (5, 20, 20), (4, 10, 10), "Conv1x1", 20),
        ("t.conv3 -> conv2", (7, 7, 7), (6, 4, 4), "Conv1x1", 42),
        ("t.fc -> fc", (12,), (16,), "Dense", 192),
    ]


# --- scales -------------------------------------------------------------------------------------------------


def rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


def test_matched_features_arrive_at_the_students_own_scale(mlp: Mlp, vectors: Tensor) -> None:
    student, loud, faint = mlp(3, 4, 2), mlp(3, 5, 2), mlp(3, 4, 2)
    for net, factor in ((loud, 100.0), (faint, 1e-3)):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(factor)
    (hidden, head), teachers = ("0", "2"), {"loud": loud, "faint": faint}
    links = [Link(layer, name, layer) for layer in (hidden, head) for name in teachers]
    flow = KnowledgeFlow(student, teachers, links, vectors)
    own = rms(student[0](vectors))
    kept = flow.transforms[0].get_parameter("weight").clone()
    flow.match_scales(vectors, [link for link in links if link.student == hidden])
    torch.testing.assert_close(flow.transforms[0].get_parameter("weight"), kept)

    def brought(layer: str, teacher: int) -> float:
        """What one teacher alone adds to the mixture, over its share of it."""
        raw = flow.mixing.get_parameter(f"raw.{layer}")
        with torch.no_grad():
            raw.copy_(torch.full((3,), -80.0))
            raw[1 + teacher] = 0.0
        seen: list[Tensor] = []
        handle = student.get_submodule(layer).register_forward_hook(lambda *hooked: seen.append(hooked[2]))
        flow(vectors)
        handle.remove()
        return rms(seen[0])

    assert brought(hidden, 0) == pytest.approx(own, rel=1e-4)
    assert brought(hidden, 1) == pytest.approx(own, rel=1e-4)
    # The head was left out: Q is the identity there.
    assert brought(head, 0) == pytest.approx(rms(loud(vectors)), rel=1e-4)


@pytest.mark.parametrize("transform", ["conv1x1", "dense", "low-rank"])
def test_scales_are_matched_behind_every_kind_of_transform(transform: str, obs: Tensor) -> None:
    student = AtariNet(4, ((4, 8, 8), (6, 4, 2)), 16)
    teacher = AtariNet(7, ((5, 8, 4), (8, 4, 2), (7, 3, 1)), 12)
    nets = {"t": teacher}
    flow = KnowledgeFlow(student, nets, links_by_depth(student, nets), obs, transform=transform, rank=2)
    own = {layer: with_features(student, [layer], obs)[1][layer] for layer in flow.layers}
    flow.match_scales(obs)
    with torch.no_grad():
        for raw in flow.mixing.parameters():
            raw.copy_(torch.tensor([-80.0, 0.0]))
    seen: dict[str, Tensor] = {}
    for layer in flow.layers:
        student.get_submodule(layer).register_forward_hook(
            lambda module, inputs, output, layer=layer: seen.update({layer: output.detach()})
        )
    flow(obs)
    for layer in flow.layers:
        assert rms(seen[layer]) == pytest.approx(rms(own[layer].detach()), rel=1e-3)


def test_matching_scales_leaves_the_student_as_it_was(vectors: Tensor) -> None:
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU(), nn.Linear(4, 2))
    flow = KnowledgeFlow(student, {"t": nn.Sequential(nn.Linear(3, 5))}, [Link("4", "t", "0")], vectors)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    flow.train()
    flow.match_scales(vectors)
    assert student.training
    assert student[1].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_an_independent_student_has_no_scales_to_match(tiny: KnowledgeFlow, vectors: Tensor) -> None:
    tiny.handover = 1.0
    tiny.match_scales(vectors)
    assert tiny.get_buffer("scales.0").tolist() == [1.0, 1.0, 1.0]


def test_a_silent_teacher_has_no_scale_to_match(mlp: Mlp, vectors: Tensor) -> None:
    teacher = mlp(3, 5, 2)
    with torch.no_grad():
        teacher[0].weight.zero_()
        teacher[0].bias.zero_()
    flow = link_up(mlp(3, 4, 2), {"a": teacher}, vectors)
    flow.match_scales(vectors)
    assert torch.isfinite(flow(vectors)).all()


def test_scales_are_kept_with_the_net_and_not_trained(tiny: KnowledgeFlow, mlp: Mlp, vectors: Tensor) -> None:
    before = tiny(vectors)
    names = {name for name, _ in tiny.named_parameters()}
    tiny.match_scales(vectors)
    after = tiny(vectors)
    assert not torch.allclose(before, after)
    assert {name for name, _ in tiny.named_parameters()} == names
    again = link_up(mlp(3, 4, 2), dict(tiny.teachers), vectors)
    again.load_state_dict(tiny.state_dict())
    torch.testing.assert_close(again(vectors), after)


# --- features, computed once --------------------------------------------------------------------------------


def test_cached_features_are_those_that_would_be_computed(atari: KnowledgeFlow, obs: Tensor) -> None:
    features = atari.teacher_features(obs)
    assert [tuple(z.shape) for z in features] == [(2, 5, 20, 20), (2, 7, 7, 7), (2, 12)]
    assert not any(z.requires_grad for z in features)
    for given, recomputed in zip(atari(obs, features), atari(obs), strict=True):
        assert torch.equal(given, recomputed)


def test_features_that_are_given_are_used(atari: KnowledgeFlow, obs: Tensor) -> None:
    features = atari.teacher_features(obs)
    perturb(atari.teachers["t"])
    before = atari(obs, features)[0]
    assert not torch.equal(before, atari(obs)[0])
    assert not torch.equal(before, atari(obs, [torch.zeros_like(z) for z in features])[0])


def test_features_of_parts_of_a_batch_can_be_put_together(atari: KnowledgeFlow, obs: Tensor) -> None:
    parts = [atari.teacher_features(part) for part in torch.split(obs, 1)]
    joined = [torch.cat(z) for z in zip(*parts, strict=True)]
    for given, recomputed in zip(atari(obs, joined), atari(obs), strict=True):
        torch.testing.assert_close(given, recomputed)


def test_a_teacher_layer_that_feeds_two_layers_is_taken_once(mlp: Mlp, vectors: Tensor) -> None:
    flow = link_up(mlp(3, 4, 4, 2), {"t": mlp(3, 5, 2)}, vectors)
    assert [(link.student, link.layer) for link in flow.links] == [("0", "0"), ("2", "0")]
    assert len(flow.teacher_features(vectors)) == 1


def test_taking_features_leaves_no_hook_on_a_teacher(tiny: KnowledgeFlow, vectors: Tensor) -> None:
    tiny.teacher_features(vectors)
    tiny(vectors)
    modules = [module for teacher in tiny.teachers.values() for module in teacher.modules()]
    assert not any(module._forward_hooks for module in modules)


# --- frozen teachers ----------------------------------------------------------------------------------------


def test_teachers_never_train(tiny: KnowledgeFlow, vectors: Tensor) -> None:
    before = {name: checksum(teacher) for name, teacher in tiny.teachers.items()}
    others = [parameter.tolist() for parameter in tiny.parameters()]
    optimiser = torch.optim.Adam(tiny.parameters(), lr=0.1)
    for _ in range(4):
        optimiser.zero_grad()
        tiny(vectors).square().sum().backward()
        optimiser.step()
    assert {name: checksum(teacher) for name, teacher in tiny.teachers.items()} == before
    assert all(ours.tolist() != old for ours, old in zip(tiny.parameters(), others, strict=True))
    frozen = [parameter for teacher in tiny.teachers.values() for parameter in teacher.parameters()]
    assert not any(parameter.requires_grad for parameter in frozen)
    assert all(parameter.grad is None for parameter in frozen)


def test_teachers_are_neither_parameters_nor_saved(tiny: KnowledgeFlow) -> None:
    frozen = {id(parameter) for teacher in tiny.teachers.values() for parameter in teacher.parameters()}
    assert not frozen & {id(parameter) for parameter in tiny.parameters()}
    student = [f"student.{name}" for name in tiny.student.state_dict()]
    others = [*(f"transforms.{index}.weight" for index in range(2)), "left_out", "mixing.raw.0", "scales.0"]
    assert sorted(tiny.state_dict()) == sorted(student + others)


def test_teachers_stay_in_evaluation_mode(mlp: Mlp, vectors: Tensor) -> None:
    teacher = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.5), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    flow = KnowledgeFlow(mlp(3, 4, 2), {"t": teacher.train()}, [Link("0", "t", "2")], vectors)
    flow.train()
    assert not teacher.training
    assert torch.equal(flow(vectors), flow(vectors))


# --- the student alone --------------------------------------------------------------------------------------


def test_a_teacher_matters_before_independence_and_not_after(tiny: KnowledgeFlow, vectors: Tensor) -> None:
    for name in ("a", "b"):
        tiny.handover = 0.99
        before = tiny(vectors)
        perturb(tiny.teachers[name])
        assert not torch.equal(tiny(vectors), before)
        tiny.handover = 1.0
        before = tiny(vectors)
        perturb(tiny.teachers[name])
        assert torch.equal(tiny(vectors), before)


def test_an_independent_student_is_the_plain_net_bit_for_bit(obs: Tensor) -> None:
    plain = AtariNet(4, ((4, 8, 8), (6, 4, 2)), 16)
    teacher = AtariNet(7, ((5, 8, 4),), 12)
    flow = link_up(copy.deepcopy(plain), {"t": teacher}, obs)
    with torch.no_grad():
        for parameter in [*teacher.parameters(), *flow.transforms.parameters()]:
            parameter.fill_(torch.nan)
    assert not flow.independent
    flow.handover = 1.0
    assert flow.independent
    assert flow.teacher_features(obs) == ()
    for alone in (flow(obs), flow(obs, ()), flow.student(obs), flow.export()(obs)):
        for own, expected in zip(alone, plain(obs), strict=True):
            assert torch.equal(own, expected)


def test_the_student_called_by_itself_is_the_plain_net(tiny: KnowledgeFlow, mlp: Mlp, vectors: Tensor) -> None:
    plain = mlp(3, 4, 2)
    plain.load_state_dict(tiny.student.state_dict())
    assert torch.equal(tiny.student(vectors), plain(vectors))
    assert not torch.equal(tiny(vectors), plain(vectors))
    assert torch.equal(tiny.student(vectors), plain(vectors))


def test_a_forward_pass_that_fails_leaves_no_features_behind(tiny: KnowledgeFlow, mlp: Mlp, vectors: Tensor) -> None:
    plain = mlp(3, 4, 2)
    plain.load_state_dict(tiny.student.state_dict())
    with pytest.raises(RuntimeError):
        tiny(vectors, [torch.zeros(1, 99)] * 2)
    with pytest.raises(ValueError, match="shorter"):
        tiny(vectors, [torch.zeros(1, 6)])
    assert torch.equal(tiny.student(vectors), plain(vectors))


def test_the_export_is_a_plain_copy(atari: KnowledgeFlow, obs: Tensor) -> None:
    linked = atari(obs)[0]
    exported = atari.export()
    assert not any(module._forward_hooks for module in exported.modules())
    plain = AtariNet(4, ((4, 8, 8), (6, 4, 2)), 16)
    plain.load_state_dict(exported.state_dict())
    unpickled = pickle.loads(pickle.dumps(exported))
    for net in (exported, unpickled):
        for own, expected in zip(net(obs), plain(obs), strict=True):
            assert torch.equal(own, expected)
    assert torch.equal(atari(obs)[0], linked), "the original lost its links"
    assert not torch.equal(linked, plain(obs)[0])
    perturb(exported)
    assert torch.equal(atari(obs)[0], linked), "the copy shares tensors with the original"


# --- teachers that come and go --------------------------------------------------------------------------------


def test_an_absent_teacher_counts_for_nothing_and_the_others_keep_their_proportions(
    tiny: KnowledgeFlow, vectors: Tensor
) -> None:
    before, layer = tiny.layer_weights("0").tolist(), "0"
    tiny.absent = frozenset({"b"})
    own, a, b = tiny.layer_weights(layer).tolist()
    assert b == 0.0
    assert (own, a) == pytest.approx((before[0] / (before[0] + before[1]), before[1] / (before[0] + before[1])))
    output = tiny(vectors)
    perturb(tiny.teachers["b"])
    assert torch.equal(tiny(vectors), output)
    perturb(tiny.teachers["a"])
    assert not torch.equal(tiny(vectors), output)


def test_dropping_a_teacher_with_p_0_changes_no_output(tiny: KnowledgeFlow, vectors: Tensor) -> None:
    with torch.no_grad():
        for layer in tiny.layers:
            tiny.mixing.raw.get_parameter(layer)[2] = -torch.inf
    before = tiny(vectors)
    tiny.absent = frozenset({"b"})
    torch.testing.assert_close(tiny(vectors), before)


def test_without_any_teacher_the_student_is_the_plain_net(tiny: KnowledgeFlow, vectors: Tensor) -> None:
    tiny.absent = frozenset({"a", "b"})
    assert tiny.teacher_features(vectors) == ()
    assert torch.equal(tiny(vectors), tiny.export()(vectors))
    assert tiny.layer_weights("0").tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("mixing", ["softmax", "simplex"])
def test_a_newcomer_has_its_share_and_changes_each_pre_activation_by_at_most_twice_that(
    mlp: Mlp, vectors: Tensor, mixing: Any
) -> None:
    student, teachers = mlp(3, 4, 5, 2), {"a": mlp(3, 5, 6, 2), "b": mlp(3, 7, 8, 1), "c": mlp(3, 4, 4, 2)}
    links = [*links_by_depth(student, teachers), Link("0", "b", "2")]  # b has two links to layer 0
    flow = KnowledgeFlow(student, teachers, links, vectors, mixing=mixing)
    randomise(flow)
    with torch.no_grad():
        for raw in flow.mixing.parameters():
            raw.abs_()
        for parameter in teachers["b"].parameters():
            parameter.mul_(30.0)
    flow.absent = frozenset({"b", "c"})
    before = {layer: flow.mixture(layer, vectors) for layer in flow.layers}
    weights = {layer: flow.layer_weights(layer) for layer in flow.layers}
    flow.admit("b", 0.05, vectors, flow.links)
    assert flow.absent == {"c"}
    assert flow.reliance("b") == pytest.approx(0.05)
    for layer, old in weights.items():
        new = flow.layer_weights(layer)
        others = [link.teacher != "b" for link in flow.candidates(layer)]
        torch.testing.assert_close(new[[True, *others]], 0.95 * old[[True, *others]])
    first = flow.layers[0]
    change = (flow.mixture(first, vectors) - before[first]).norm() / before[first].norm()
    assert 0.0 < change <= 2.1 * 0.05


def test_the_students_weight_can_be_set_beside_absent_teachers(tiny: KnowledgeFlow) -> None:
    tiny.absent = frozenset({"a"})
    tiny.set_student_weight(0.3)
    for layer in tiny.layers:
        assert tiny.layer_weights(layer).tolist() == pytest.approx([0.3, 0.0, 0.7])
