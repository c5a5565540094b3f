import math

import pytest
import torch

from kfrl.errors import UserError
from kfrl.flow.pool import DISCOUNT, C, Measured, TeacherPool

FULL = torch.tensor([10.0, 12.0, 9.0, 11.0])


def measured(lost: float, share: float = 0.5, noise: float = 0.1) -> Measured:
    return Measured(share, FULL, FULL - lost + noise * torch.tensor([1.0, -1.0, 1.0, -1.0]))


def after(pool: TeacherPool, found: dict[str, Measured], *, newcomers: bool = True) -> list[tuple[str, bool]]:
    pool.record(found)
    changes = pool.changes(newcomers)
    pool.make(changes)
    return [(change.teacher, change.comes) for change in changes]


def test_the_worth_of_a_teacher_is_the_share_of_the_return_that_is_lost_without_it() -> None:
    assert measured(5.25).worth == pytest.approx(0.5)
    assert measured(-10.5).worth == pytest.approx(-0.5)  # 21 without it
    assert Measured(0.5, torch.zeros(4), torch.zeros(4)).worth == 0.0


@pytest.mark.parametrize(("lost", "useful"), [(0.2, True), (0.08, False), (0.0, False), (-1.0, False)])
def test_a_teacher_is_useful_if_a_one_sided_t_test_says_so(lost: float, useful: bool) -> None:
    # Differences lost -+ 0.1: deviation 0.1155, error of the mean 0.0577, times t(0.9; 3) = 1.638 is 0.0946.
    assert measured(lost).useful == useful


def test_a_teacher_goes_after_two_reviews_that_found_it_useless_and_the_next_comes() -> None:
    pool = TeacherPool(("a", "b", "c"), 2)
    assert pool.present == ("a", "b")
    assert after(pool, {"a": measured(5.0), "b": measured(0.0)}) == []
    assert after(pool, {"a": measured(5.0), "b": measured(0.0)}) == [("b", False), ("c", True)]
    assert (pool.present, pool.absent) == (("a", "c"), {"b"})


def test_one_useful_review_in_between_counts_the_useless_ones_anew() -> None:
    pool = TeacherPool(("a",), 1)
    for lost in (0.0, 5.0, 0.0):
        assert after(pool, {"a": measured(lost)}) == []
    assert after(pool, {"a": measured(0.0)}) == [("a", False)]


def test_a_review_without_any_reward_counts_against_nobody() -> None:
    pool, silent = TeacherPool(("a", "b"), 2), Measured(0.5, torch.zeros(4), torch.zeros(4))
    for _ in range(3):
        assert after(pool, {"a": silent, "b": silent}) == []
    assert (pool.mean_worth("a"), int(pool.reviews)) == (math.inf, 3)
    # Rewards without one teacher say something about both.
    alone = Measured(0.5, torch.zeros(4), FULL)
    for _ in range(2):
        changes = after(pool, {"a": silent, "b": alone})
    assert changes == [("a", False), ("b", False)]


def test_a_teacher_whose_share_stays_faint_goes_however_useful() -> None:
    pool = TeacherPool(("a",), 1)
    for _ in range(4):
        assert after(pool, {"a": measured(5.0, share=0.01)}) == []
    assert after(pool, {"a": measured(5.0, share=0.01)}) == [("a", False)]


def test_who_was_never_linked_takes_the_place_of_the_least_one_that_is_settled() -> None:
    pool = TeacherPool(("a", "b", "c"), 2)
    assert after(pool, {"a": measured(8.0), "b": measured(4.0)}) == []
    assert after(pool, {"a": measured(8.0), "b": measured(4.0)}) == [("b", False), ("c", True)]
    assert after(pool, {"a": measured(1.0), "c": measured(1.0)}) == []  # b would be better, but c is new


def test_nobody_comes_when_none_may() -> None:
    pool = TeacherPool(("a", "b"), 1)
    after(pool, {"a": measured(0.0)}, newcomers=False)
    assert after(pool, {"a": measured(0.0)}, newcomers=False) == [("a", False)]
    assert pool.present == ()


def test_the_index_is_that_of_discounted_ucb() -> None:
    pool = TeacherPool(("a", "b", "c"), 2)
    pool.record({"a": measured(5.25), "b": measured(0.0)})
    pool.record({"a": measured(5.25), "b": measured(0.0)})
    count = 1 + DISCOUNT
    bonus = C * math.sqrt(math.log(2 * count) / count)
    assert pool.index("a") == pytest.approx(0.5 + bonus)
    assert pool.index("b") == pytest.approx(bonus)
    assert pool.index("c") == math.inf


@pytest.mark.parametrize(("places", "linked"), [(1, ["rare"]), (3, ["rare", "good"])])
def test_free_places_go_to_the_highest_indices_above_0(places: int, linked: list[str]) -> None:
    pool = TeacherPool(("bad", "good", "rare"), places)
    pool.linked.fill_(False)
    pool.counts.copy_(torch.tensor([1.0, 1.0, 0.1]))
    pool.worths.copy_(torch.tensor([-0.9, 0.5, 0.03]))
    # ln 2.1 = 0.742: -0.9 + 0.25 x 0.861 = -0.68, 0.5 + 0.25 x 0.861 = 0.72 and 0.3 + 0.25 x 2.72 = 0.98.
    assert [change.teacher for change in pool.changes(newcomers=True)] == linked


def test_a_checkpoint_has_all_of_it() -> None:
    pool, other = TeacherPool(("a", "b", "c"), 2), TeacherPool(("a", "b", "c"), 2)
    after(pool, {"a": measured(8.0), "b": measured(0.0)})
    other.load_state_dict(pool.state_dict())
    found = {"a": measured(8.0), "b": measured(0.0)}
    assert after(other, found) == after(pool, found) == [("b", False), ("c", True)]
    assert other.index("a") == pool.index("a")


@pytest.mark.parametrize("seed", range(10))
def test_the_expert_is_held_and_the_random_one_dropped(seed: int) -> None:
    """Noisy returns: without the expert 80 % are lost, without one of the others 20 %, without the random one none."""
    generator = torch.Generator().manual_seed(seed)
    lost = {"random": 0.0, "other": 0.2, "third": 0.2, "expert": 0.8}
    pool = TeacherPool(tuple(lost), 2)
    for review in range(20):
        found = {}
        for teacher in pool.present:
            full, noise = (torch.randn(2, 30, generator=generator) * 3.0).unbind()
            found[teacher] = Measured(0.4, 10.0 + full, 10.0 + full - 10.0 * lost[teacher] + noise)
        after(pool, found, newcomers=review < 16)
    assert "expert" in pool.present
    assert "random" not in pool.present


def test_a_barred_teacher_is_neither_linked_nor_taken() -> None:
    pool = TeacherPool(("a", "b", "c", "d"), 2)
    pool.bar({"a", "d"})
    assert pool.present == ("b", "c")
    for _ in range(2):
        changes = after(pool, {"b": measured(5.0), "c": measured(0.0)})
    # Nobody waits.
    assert changes == [("c", False)]


def test_a_pool_with_fewer_usable_teachers_than_places_is_refused() -> None:
    with pytest.raises(UserError, match=r"1 usable teachers for 2 places.*--linked-teachers 1"):
        TeacherPool(("a", "b"), 2).bar({"a"})
