import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.functional import hessian
from torch.func import functional_call

from kfrl.errors import UserError
from kfrl.nets import build_net
from kfrl.runs.metrics import read_metrics
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.data.batches import Images
from kfrl.supervised.data.corrupt import draw_noise
from kfrl.supervised.launch import Session
from kfrl.supervised.methods.anti_distillation import AntiDistillation
from kfrl.supervised.methods.base import Progress
from kfrl.training.session import Silent

OLD = Images(torch.randint(0, 256, (30, 1, 8, 8), dtype=torch.uint8), torch.arange(30) % 3)
IN_PHI, AFTER = Progress(0, 0.0, 0.0), Progress(1, 0.0, 0.5)


def method(**own: object) -> AntiDistillation:
    settings = {"phi_epochs": 1, **own}
    return AntiDistillation(SupervisedConfig(epochs=3, batch_size=4, methods={"anti-distillation": settings}))


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> Images:
    """What stands for the teacher's images."""
    monkeypatch.setattr("kfrl.supervised.methods.anti_distillation.old_images", lambda *_: (OLD, OLD, OLD))
    return OLD


@pytest.mark.parametrize(("small", "large"), [("mlp-6", "mlp-9"), ("conv-3-4", "conv-5-4"), ("lstm-3", "lstm-5")])
def test_the_student_begins_as_its_teacher(task, taught, batch, small: str, large: str) -> None:
    teacher = taught(small)
    student = AntiDistillation(SupervisedConfig()).build(task(large), [teacher]).eval()
    torch.testing.assert_close(student(batch.images), teacher.net(batch.images), rtol=1e-5, atol=1e-6)
    assert sum(p.numel() for p in student.parameters()) > sum(p.numel() for p in teacher.net.parameters())
    # What a run saves is enough to build it again.
    twin = build_net(student.arch, 3)
    twin.load_state_dict(student.state_dict())
    assert torch.equal(twin(batch.images), student(batch.images))


def test_a_teacher_of_fewer_classes_keeps_its_answers(task, taught, batch) -> None:
    teacher = taught("mlp-6", classes=("cat", "dog"))
    logits = AntiDistillation(SupervisedConfig()).build(task("mlp-9"), [teacher])(batch.images)
    torch.testing.assert_close(logits[:, :2], teacher.net(batch.images), rtol=1e-5, atol=1e-6)
    assert not logits[:, 2].any()


def test_uniform_extension_reaches_theta(task, taught) -> None:
    config = SupervisedConfig(methods={"anti-distillation": {"extension": "uniform", "theta": 0.5}})
    student = AntiDistillation(config).build(task("mlp-60"), [taught("mlp-6")])
    new = student.fc1.weight[6:].detach()
    assert float(new.min()) >= 0 and 0.49 < float(new.max()) < 0.5


def test_a_net_that_the_teacher_does_not_fit_into_is_refused(task, taught) -> None:
    with pytest.raises(UserError, match="would shrink"):
        AntiDistillation(SupervisedConfig()).build(task("mlp-5"), [taught("mlp-6")])


# --- phi's terms ----------------------------------------------------------------------------------------------


def test_without_phi_the_grown_net_learns_at_once(task, taught, batch) -> None:
    made = AntiDistillation(SupervisedConfig(epochs=3))
    net = made.build(task("mlp-9"), [taught("mlp-6")])
    (stage,) = made.stages(net)
    assert (stage.name, stage.epochs) == ("train", 3)
    terms = made.losses(net, batch, IN_PHI)
    assert set(terms) == {"task"}
    assert torch.equal(terms["task"], F.cross_entropy(net(batch.images), batch.labels))


def test_phi_is_a_stage_before_training(task, taught, batch, old) -> None:
    made = method(phi_epochs=2, phi_lr=0.5, old_weight=1.0, teacher_weight=1.0, noise_weight=1.0, hessian_weight=1.0)
    net = made.build(task("mlp-9"), [taught("mlp-6")])
    phi, train = made.stages(net)
    assert (phi.name, phi.epochs, train.name, train.epochs) == ("phi", 2, "train", 3)
    (group,) = phi.groups
    assert group.lr_scale == 0.5 and not group.weight_decay
    assert {id(p) for p in group.parameters} == {id(p) for p in net.parameters()}
    assert set(made.losses(net, batch, IN_PHI)) == {"old", "teacher", "noise", "hessian"}
    assert set(made.losses(net, batch, AFTER)) == {"task"}


def test_the_distance_to_the_teachers_weights_by_hand(task, taught, batch, old) -> None:
    made = method(teacher_weight=3.0, old_weight=1.0)
    net = made.build(task("mlp-9"), [taught("mlp-6")])
    assert float(made.losses(net, batch, IN_PHI)["teacher"].detach()) == 0
    with torch.no_grad():
        net.fc1.weight[0, 0] += 0.5
        net.fc1.weight[5, 63] -= 1.0
        net.head.bias[2] += 2.0
        # Weights that the teacher has not.
        net.fc1.weight[6:] += 7.0
        net.fc1.bias[8] -= 7.0
        net.head.weight[:, 6:] += 7.0
    assert float(made.losses(net, batch, IN_PHI)["teacher"].detach()) == pytest.approx(3 * (0.25 + 1.0 + 4.0))


def test_luma_shares_the_distance_of_a_gray_weight(task, taught, batch, old) -> None:
    made = method(teacher_weight=1.0, old_weight=1.0)
    net = made.build(task("mlp-9", (3, 8, 8)), [taught("mlp-6")])
    with torch.no_grad():
        net.fc1.weight.view(9, 3, 8, 8)[0, :, 0, 0] += torch.tensor([0.1, 0.2, 0.2])
    assert float(made.losses(net, batch, IN_PHI)["teacher"].detach()) == pytest.approx(0.01 + 0.04 + 0.04)


def test_the_old_loss_is_that_of_the_teachers_images_as_it_knows_them(task, taught, batch, old) -> None:
    made = method(old_weight=2.0)
    teacher = taught("mlp-6", mean=(0.2,), std=(0.4,))
    net = made.build(task("mlp-9", (3, 9, 10)), [teacher])
    torch.manual_seed(5)
    term = made.losses(net, batch, IN_PHI)["old"]
    torch.manual_seed(5)
    rows = torch.randint(30, (2,))
    images = (old.pixels[rows] / 255 - 0.2) / 0.4
    # The grown net says of psi(x) what the teacher says of x.
    expected = 2 * F.cross_entropy(teacher.net(images), old.labels[rows])
    assert float(term.detach()) == pytest.approx(float(expected), rel=1e-5)


def test_the_noise_loss_is_that_of_images_with_a_share_of_noise(task, taught, batch, old) -> None:
    made = method(noise_weight=2.0, noise_share=0.25)
    teacher = taught("mlp-6", mean=(0.2,), std=(0.4,))
    net = made.build(task("mlp-9", (1, 9, 10)), [teacher])
    torch.manual_seed(5)
    term = made.losses(net, batch, IN_PHI)["noise"]
    torch.manual_seed(5)
    rows = torch.randint(30, (2,))
    hit, noise = draw_noise((2, 1, 8, 8), 0.25)
    assert hit.flatten(1).sum(1).tolist() == [16, 16]
    pixels = old.pixels[rows].clone()
    pixels[hit] = noise[hit]
    expected = 2 * F.cross_entropy(teacher.net((pixels / 255 - 0.2) / 0.4), old.labels[rows])
    assert float(term.detach()) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("steps", [0, 200])
def test_the_hessian_term_against_the_whole_hessian(task, taught, batch, old, steps: int) -> None:
    made = method(hessian_weight=3.0, hessian_steps=steps, extension="uniform", theta=0.5)
    net = made.build(task("mlp-2"), [taught("mlp-1")])
    torch.manual_seed(5)
    found = made.losses(net, batch, IN_PHI)["hessian"].detach()
    torch.manual_seed(5)
    rows = torch.randint(30, (2,))
    vector = torch.cat([torch.randn_like(parameter).flatten() for parameter in net.parameters()])
    images, names = (old.pixels[rows] / 255 - 0.5) / 0.5, [name for name, _ in net.named_parameters()]
    sizes = [parameter.numel() for parameter in net.parameters()]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        held = {n: v.view(net.get_parameter(n).shape) for n, v in zip(names, flat.split(sizes), strict=True)}
        return F.cross_entropy(functional_call(net, held, images), old.labels[rows])

    whole = hessian(loss, torch.nn.utils.parameters_to_vector(net.parameters()).detach())
    norm = torch.linalg.eigvalsh(whole.double()).abs().max() if steps else (whole @ vector).norm()
    assert float(norm) > 0.01
    torch.testing.assert_close(found, 3 * norm.float() ** 2, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("net", ["mlp-9", "conv-5-4", "lstm-5"])
def test_every_term_has_a_gradient_in_every_kind_of_layer(task, taught, batch, old, net: str) -> None:
    small = {"mlp-9": "mlp-6", "conv-5-4": "conv-3-4", "lstm-5": "lstm-3"}[net]
    for term in ("old", "noise", "hessian"):
        made = method(extension="uniform", theta=0.1, **{f"{term}_weight": 1.0})
        student = made.build(task(net), [taught(small)])
        terms = made.losses(student, batch, IN_PHI)
        assert set(terms) == {term}
        terms[term].backward()
        # Of the last bias H has no third derivative in some nets.
        assert all(bool(p.grad.any()) for name, p in student.named_parameters() if name != "head.bias")


def test_the_distance_alone_leaves_the_net_as_it_grew(task, taught, batch, old) -> None:
    made = method(teacher_weight=1.0, old_weight=1.0)
    net = made.build(task("mlp-9"), [taught("mlp-6")])
    made.losses(net, batch, IN_PHI)["teacher"].backward()
    assert not any(bool(parameter.grad.any()) for parameter in net.parameters())


# --- bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (
            {"phi_epochs": 0, "old_weight": 0.5, "hessian_weight": 1e-4},
            "^--old-weight 0.5 --hessian-weight 0.0001 is a weight of phi.*--phi-epochs is 0.*Give --phi-epochs 1",
        ),
        ({"phi_epochs": 2}, "^--phi-epochs 2 has nothing to minimise.*Give --old-weight, --noise-weight or --hess"),
        ({"phi_epochs": 2, "teacher_weight": 1.0}, "^--phi-epochs 2 has nothing to minimise: the grown net has the"),
        ({"old_weight": -1.0}, "old_weight"),
    ],
)
def test_settings_of_phi_that_do_nothing_are_refused(task, taught, own: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        method(**own).build(task("mlp-9"), [taught("mlp-6")])


@pytest.mark.parametrize("term", ["old", "noise", "hessian"])
def test_terms_on_old_images_that_are_not_to_be_had_are_refused(task, taught, term: str) -> None:
    words = r"Where are the images of 'pets'.*--old-data FOLDER; or leave out --phi-epochs and the weights"
    with pytest.raises(UserError, match=words):
        method(**{f"{term}_weight": 1.0}).build(task("mlp-9"), [taught("mlp-6")])


def test_old_images_that_the_teacher_did_not_learn_are_refused(task, taught, old) -> None:
    with pytest.raises(
        UserError, match=r"of pets are of shape \(1, 8, 8\) .* teacher 'pets' was trained on .*\(1, 6, 8\)"
    ):
        method(old_weight=1.0).build(task("mlp-9"), [taught("mlp-6", shape=(1, 6, 8))])
    with pytest.raises(UserError, match=r"Images of \(1, 8, 8\) .* cannot become smaller ones of \(1, 7, 8\)"):
        # No weight of an LSTM says how many rows it reads.
        method(old_weight=1.0).build(task("lstm-5", (1, 7, 8)), [taught("lstm-3")])


def test_old_images_of_other_classes_are_refused(task, taught) -> None:
    with pytest.raises(UserError, match=r"has 3 classes \(cat, dog, emu\), and digits has 10 others"):
        method(old_weight=1.0, old_data="digits").build(task("mlp-9"), [taught("mlp-6")])


# --- a run: digits 0 to 4 first, then all ---------------------------------------------------------------------


def test_phi_fits_the_grown_net_to_its_old_images_before_it_learns_new_ones(tmp_path: Path) -> None:
    common = {"batch_size": 32, "lr": 0.1, "net": "mlp-8", "epochs": 4}
    Session.start({**common, "data": "digits-half", "run_dir": tmp_path / "teacher"}).complete(Silent())
    own = {"extension": "uniform", "theta": 0.5, "phi_epochs": 2, "old_weight": 0.9, "teacher_weight": 1e-3}
    settings = {**common, "data": "digits", "net": "mlp-16", "epochs": 2, "method": "anti-distillation"}
    session = Session.start({**settings, "teachers": str(tmp_path / "teacher"), "run_dir": tmp_path / "s", "own": own})
    session.complete(Silent())
    rows = read_metrics(tmp_path / "s" / "metrics.csv")
    assert [row["charts/epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[1]["losses/old"] < rows[0]["losses/old"] / 2
    # It has seen five of ten classes, then all.
    assert 0.4 < rows[1]["val/accuracy"] < 0.55 and rows[3]["val/accuracy"] > 0.85
    assert json.loads(session.run.folder.evaluation.read_text())["kept_epoch"] > 2
