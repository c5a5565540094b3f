import pytest

from kfrl.errors import UserError
from kfrl.flow import HandOver, dependence_weight


def test_dependence_weight_grows_linearly_from_zero_to_its_final_value() -> None:
    assert dependence_weight(0.0, 0.5) == 0.0
    assert dependence_weight(0.25, 0.5) == 0.125
    assert dependence_weight(1.0, 0.5) == 0.5


def test_hand_over_is_a_cubic_ramp_between_its_ends() -> None:
    hand_over = HandOver(0.4, 0.8)
    assert [hand_over(progress) for progress in (0.0, 0.2, 0.39999)] == [0.0, 0.0, 0.0]
    assert [hand_over(progress) for progress in (0.5, 0.6, 0.7)] == pytest.approx([0.578125, 0.875, 0.984375])
    assert [hand_over(progress) for progress in (0.8, 0.9, 1.0)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("steps", [1, 7, 999, 12_345, 40_000_000])
@pytest.mark.parametrize(("start", "end"), [(0.4, 0.8), (0.25, 0.85), (0.1, 0.3), (0.0, 1.0)])
def test_hand_over_is_complete_from_its_end_on_whatever_the_length_of_the_run(
    steps: int, start: float, end: float
) -> None:
    hand_over = HandOver(start, end)
    last = -(-int(end * 1000) * steps // 1000)
    progress = [step / steps for step in range(max(0, last - 50), min(steps, last + 50) + 1)]
    shares = [hand_over(p) for p in progress]
    assert [share for p, share in zip(progress, shares, strict=True) if p >= end] == [1.0] * sum(
        p >= end for p in progress
    )
    assert all(share < 1.0 for p, share in zip(progress, shares, strict=True) if p < end - 1e-4)
    assert shares == sorted(shares)
    assert hand_over(1.0) == 1.0


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.4, 0.3)])
def test_a_ramp_that_is_a_step_is_refused(start: float, end: float) -> None:
    with pytest.raises(UserError, match=rf"--independence-at {end} is not after --handover-start {start}.*e\.g\. 0\.1"):
        HandOver(start, end)


def test_a_student_may_be_alone_from_the_beginning() -> None:
    assert HandOver(0.0, 0.0)(0.0) == 1.0


def test_hand_over_may_reach_the_very_end() -> None:
    hand_over = HandOver(0.0, 1.0)
    assert hand_over(0.0) == 0.0
    assert hand_over(0.999) < 1.0
    assert hand_over(1.0) == 1.0


def test_without_an_end_p_is_left_to_the_losses() -> None:
    hand_over = HandOver(0.4, None)
    assert [hand_over(progress) for progress in (0.0, 0.5, 1.0)] == [0.0, 0.0, 0.0]
