"""The images that a teacher was trained on, for methods that use them again."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from kfrl.errors import UserError, shortened
from kfrl.supervised.classifiers import Card
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.data.batches import Images
from kfrl.supervised.data.sets import is_data_set, load_data


def old_images(
    given: str, card: Card, config: SupervisedConfig, size: int | None, otherwise: str, count: int | None = None
) -> tuple[Images, Images, Images]:
    """A teacher's images for training, validation and test, divided as in its run.

    Args:
        given: --old-data: a data set or a folder; "": the teacher's data set.
        card: The teacher's.
        config: Of the student's run.
        size: Resize the images to this height and width; None: as they are.
        otherwise: What else the user can do if they are not there, as the end of a sentence.
        count: Take the same images for training and validation as a run with this --train-images. Default: all.

    Raises:
        UserError: they cannot be loaded, are fewer than `count`, or have other classes.
    """
    name = given or card.data
    if not given and not is_data_set(name):
        raise UserError(
            f"Where are the images of {name!r}, which the teacher has learned? Give --old-data FOLDER; or {otherwise}."
        )
    return _loaded(name, config.data_dir, size, 1e9 * config.memory_gb, config.validation, card.classes, count)


@lru_cache(maxsize=1)
def _loaded(
    name: str,
    data_dir: Path | None,
    size: int | None,
    memory: float,
    share: float,
    classes: tuple[str, ...],
    count: int | None,
) -> tuple[Images, Images, Images]:
    data = load_data(name, data_dir, size, memory)
    if data.classes != classes:
        raise UserError(
            f"The teacher has {len(classes)} classes ({shortened(classes, 4)}), and {name} has {len(data.classes)} "
            f"others ({shortened(data.classes, 4)}). Give the old task's images: --old-data."
        )
    if count is not None and not len(classes) <= count <= len(data.train):
        raise UserError(
            f"{count:,} of the teacher's images are not possible: {name} has {len(data.train):,} training images in "
            f"{len(classes)} classes. Give {len(classes)} to {len(data.train):,}."
        )
    rows, kept_back = data.split(0.0 if data.validation is not None else share, count)
    validation = data.train.take(kept_back) if data.validation is None else data.validation
    return data.train.take(rows), validation, data.test
