from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agents.teachers.formats import Card as AgentCard
from agents.teachers.formats import save_agent
from kfrl.config import dump_config
from kfrl.errors import UserError
from kfrl.nets.atari.net import AtariNet
from kfrl.nets.images.registry import make_net
from kfrl.supervised.classifiers import Card, Teacher, load_classifier, save_classifier
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.data.batches import Batch, Normalisation
from kfrl.supervised.teachers import LUMA, Adapter, adapt, find_classifier, load_classifiers, teacher_logits

OWN = Normalisation((0.25,), (0.5,))


def card(shape: tuple[int, int, int] = (1, 4, 4), **fields: object) -> Card:
    known = {
        "data": "pets",
        "classes": ("cat", "dog"),
        "arch": make_net("mlp-3", shape, 2).arch,
        "mean": (0.1, 0.2, 0.3)[: shape[0]],
        "std": (0.5, 1.0, 2.0)[: shape[0]],
    }
    return Card(input_shape=shape, **{**known, **fields})


def save(path: Path, **fields: object) -> Path:
    made = card(**fields)
    save_classifier(path, make_net("mlp-3", made.input_shape, len(made.classes)), made)
    return path


# --- input --------------------------------------------------------------------------------------------------


def seen_by(teacher: Card, images: torch.Tensor, own: Normalisation) -> torch.Tensor:
    shape = (images.shape[1], images.shape[2], images.shape[3])
    (adapted,) = Adapter(shape, own, teacher)(nn.Identity(), (images,))
    return adapted


def test_images_are_normalised_as_the_teacher_knows_them() -> None:
    pixels = torch.rand(2, 1, 4, 4)
    adapted = seen_by(card(), (pixels - 0.25) / 0.5, OWN)
    assert torch.allclose(adapted, (pixels - 0.1) / 0.5, atol=1e-6)


def test_gray_becomes_three_channels_of_the_teachers_scale() -> None:
    pixels = torch.rand(2, 1, 4, 4)
    adapted = seen_by(card((3, 4, 4)), (pixels - 0.25) / 0.5, OWN)
    for channel, (mean, std) in enumerate(((0.1, 0.5), (0.2, 1.0), (0.3, 2.0))):
        assert torch.allclose(adapted[:, channel], (pixels[:, 0] - mean) / std, atol=1e-6)


def test_colour_becomes_luma_and_sizes_are_matched() -> None:
    pixels = torch.rand(2, 3, 8, 6)
    own = Normalisation((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    normalised = (pixels - torch.tensor(own.mean)[:, None, None]) / torch.tensor(own.std)[:, None, None]
    adapted = seen_by(card(), normalised, own)
    gray = sum(weight * pixels[:, channel : channel + 1] for channel, weight in enumerate(LUMA))
    resized = F.interpolate(gray, (4, 4), mode="bilinear", antialias=True)
    assert torch.allclose(adapted, (resized - 0.1) / 0.5, atol=1e-5)


def test_a_teacher_of_the_same_images_is_left_alone_and_another_says_what_is_done() -> None:
    same = Teacher("pets", make_net("mlp-3", (1, 4, 4), 2), card(mean=OWN.mean, std=OWN.std), Path("x"))
    assert adapt(same, (1, 4, 4), OWN).adapted == ()
    other = adapt(
        replace(same, card=card(mean=OWN.mean, std=OWN.std)), (3, 8, 8), Normalisation((0.0,) * 3, (1.0,) * 3)
    )
    assert other.adapted == ("RGB to gray", "resized 8x8 -> 4x4", "normalised for the teacher")
    batch = Batch(torch.rand(5, 3, 8, 8), torch.zeros(5, dtype=torch.int64))
    assert teacher_logits(other, batch).shape == (5, 2)


def test_channels_that_nobody_can_match_are_refused() -> None:
    with pytest.raises(UserError, match="takes 1 channels and the student 2"):
        Adapter((2, 4, 4), Normalisation.none(2), card())


# --- finding ------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for number, (data, accuracy) in enumerate((("pets", 0.6), ("pets", 0.9), ("pets", None), ("cars", 0.99))):
        save(
            tmp_path / data / "baseline" / str(number) / "student.safetensors", data=data, validation_accuracy=accuracy
        )
    agent = AtariNet(3, ((4, 8, 8),), 8)
    save_agent(
        tmp_path / "alien" / "a3c" / "x" / "student.safetensors", agent, AgentCard("pets", ("a", "b", "c"), agent.arch)
    )
    return tmp_path


def test_a_data_set_means_its_best_run_on_validation_images(runs: Path) -> None:
    assert find_classifier("Pets", runs) == runs / "pets" / "baseline" / "1" / "student.safetensors"


def with_config(run: Path, **settings: object) -> None:
    (run / "config.yaml").write_text(dump_config(replace(SupervisedConfig(data="pets"), **settings)))


def test_runs_with_other_validation_images_are_not_ranked(runs: Path) -> None:
    first, second, unscored = (runs / "pets" / "baseline" / number for number in "012")
    with_config(first)
    with_config(second, validation=0.5, train_images=100)
    with_config(unscored, validation=0.0)
    with pytest.raises(UserError) as refused:
        find_classifier("pets", runs)
    said = str(refused.value)
    assert f"{first}: 60.0 % of --validation 0.1;" in said
    assert f"{second}: 90.0 % of --validation 0.5 --train-images 100." in said
    assert "Give the folder of one" in said
    assert str(unscored) not in said
    assert find_classifier(str(second), runs) == second / "student.safetensors"


def test_folders_of_images_of_one_name_are_not_ranked(runs: Path) -> None:
    first, second = (runs / "pets" / "baseline" / number for number in "01")
    with_config(first, data="/a/pets")
    with_config(second, data="/b/pets")
    with pytest.raises(UserError, match=r"60\.0 % of --data /a/pets --validation 0\.1; .* 90\.0 % of --data /b/pets"):
        find_classifier("pets", runs)


def test_runs_with_the_same_validation_images_are_ranked(runs: Path) -> None:
    for number in "01":
        with_config(runs / "pets" / "baseline" / number, validation=0.2, seed=int(number), lr=0.5)
    assert find_classifier("pets", runs) == runs / "pets" / "baseline" / "1" / "student.safetensors"


def test_a_run_and_a_file_are_found_by_their_path(runs: Path) -> None:
    folder = runs / "pets" / "baseline" / "2"
    assert find_classifier(str(folder), runs) == find_classifier(str(folder / "student.safetensors"), runs)


@pytest.mark.parametrize(("given", "near"), [("petz", "pets"), ("emnist-digts", "emnist-digits")])
def test_an_unknown_teacher_names_the_nearest_and_what_to_do(runs: Path, given: str, near: str) -> None:
    with pytest.raises(
        UserError, match=rf"Did you mean '{near}'\?.*learned so far: cars, pets\), or the path"
    ) as caught:
        find_classifier(given, runs)
    assert f"--data {given}" not in str(caught.value)


@pytest.mark.parametrize("given", ["emnist-digits", "mnist-no-3", "emnist-letters-half"])
def test_a_data_set_that_no_run_has_learned_says_how_to_train_one(runs: Path, given: str) -> None:
    with pytest.raises(UserError, match=f"has learned {given} .*kfrl supervised train --data {given}"):
        find_classifier(given, runs)


def test_two_teachers_of_one_data_set_have_two_names(runs: Path) -> None:
    paths = [str(runs / "pets" / "baseline" / number) for number in "01"]
    assert [teacher.name for teacher in load_classifiers(paths, runs)] == ["pets", "pets-2"]


def test_a_saved_classifier_comes_back_frozen_with_its_card(tmp_path: Path) -> None:
    net = make_net("mlp-3", (1, 4, 4), 2)
    save_classifier(tmp_path / "x.safetensors", net, card(validation_accuracy=0.5))
    loaded = load_classifier(tmp_path / "x.safetensors")
    images = torch.rand(3, 1, 4, 4)
    assert torch.equal(loaded.net(images), net.eval()(images))
    assert loaded.card == card(validation_accuracy=0.5, arch=loaded.card.arch)
    assert not any(parameter.requires_grad for parameter in loaded.net.parameters())


def test_an_agent_is_no_classifier(runs: Path) -> None:
    with pytest.raises(UserError, match="format 'kfrl-agent-1', expected 'kfrl-classifier-1'"):
        load_classifier(runs / "alien" / "a3c" / "x" / "student.safetensors")


def test_a_truncated_classifier_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"x\.safetensors is truncated or damaged"):
        load_classifier(path)
