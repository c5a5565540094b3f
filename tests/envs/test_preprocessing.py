import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from envs.preprocessing import ALE, PRESETS, Preprocessing, get_preprocessing
from kfrl.errors import UserError


@pytest.fixture
def rgb() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(256, size=(210, 160, 3), dtype=np.uint8)


def test_baselines_screens_are_opencvs_gray_and_area(rgb: NDArray[np.uint8]) -> None:
    expected = cv2.resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (84, 84), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(PRESETS["baselines"].screen(rgb), expected)


def test_the_weights_are_those_of_red_green_and_blue() -> None:
    for channel, expected in enumerate((0.2126, 0.0722, 0.7152)):
        plain = np.zeros((210, 160, 3), dtype=np.uint8)
        plain[..., channel] = 200
        assert (PRESETS["async-rl"].screen(plain) == int(200 * expected)).all()


def test_linear_and_area_differ(rgb: NDArray[np.uint8]) -> None:
    linear, area = (Preprocessing((0.3, 0.3, 0.4), resize=kind).screen(rgb) for kind in ("linear", "area"))
    assert (linear != area).mean() > 0.5


def test_a_crop_keeps_84_rows_of_the_resized_screen() -> None:
    rows = np.repeat(np.arange(210, dtype=np.uint8)[:, None], 160, axis=1)
    screen = Preprocessing((1.0, 0.0, 0.0), crop=(110, 18)).screen(np.stack([rows] * 3, axis=2))
    assert screen.shape == (84, 84)
    assert screen[0].mean() == pytest.approx(18 * 210 / 110, abs=1.5)
    assert screen[-1].mean() == pytest.approx(102 * 210 / 110, abs=2.5)


def test_ale_screens_keep_the_buttons() -> None:
    assert PRESETS["baselines"].with_ale_screens() == Preprocessing(fire_reset=True)
    assert PRESETS["async-rl"].with_ale_screens() == ALE
    with pytest.raises(ValueError, match="luma"):
        ALE.screen(np.zeros((210, 160, 3), dtype=np.uint8))


def test_presets_have_names() -> None:
    assert get_preprocessing("ale") == ALE
    with pytest.raises(UserError, match=r"Unknown preprocessing 'baseline'\. Did you mean 'baselines'"):
        get_preprocessing("baseline")
