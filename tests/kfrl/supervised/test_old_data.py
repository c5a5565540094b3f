import pytest
import torch

from kfrl.errors import UserError
from kfrl.supervised.classifiers import Card
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.data.sets import load_data
from kfrl.supervised.launch import Session
from kfrl.supervised.old_data import old_images

DIGITS = Card("digits", tuple("0123456789"), {}, (1, 8, 8), (0.0,), (1.0,))


def test_they_are_those_that_a_run_learns_from() -> None:
    config = SupervisedConfig(data="digits", net="mlp-4", train_images=200)
    run = Session.start(config).run
    train, validation, test = old_images("", DIGITS, config, None, "", 200)
    assert torch.equal(train.pixels, run.train.pixels) and torch.equal(train.labels, run.train.labels)
    assert torch.equal(validation.pixels, run.validation.pixels)
    assert len(test) == len(load_data("digits").test)
    assert len(old_images("", DIGITS, config, None, "")[0]) > 1000


def test_they_are_resized_as_the_teachers_were() -> None:
    assert old_images("digits", DIGITS, SupervisedConfig(), 5, "")[0].shape == (1, 5, 5)


@pytest.mark.parametrize("count", [9, 100_000])
def test_a_number_that_is_not_there_is_refused(count: int) -> None:
    words = rf"{count:,} of the teacher's images are not possible: digits has 1,438 .* Give 10 to 1,438"
    with pytest.raises(UserError, match=words):
        old_images("", DIGITS, SupervisedConfig(), None, "", count)
