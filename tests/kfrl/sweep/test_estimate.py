from types import SimpleNamespace

import pytest

from kfrl.sweep import estimate
from kfrl.training.status import Status


def test_a_run_is_timed_after_its_first_updates_and_over_a_whole_period(monkeypatch: pytest.MonkeyPatch) -> None:
    now, stops = 0.0, list[int]()
    trainer = SimpleNamespace(steady=(120, 50), stop=stops.append)
    timer = estimate._ProgressTimer(SimpleNamespace(trainer=trainer), seconds=1.0)
    monkeypatch.setattr(estimate.time, "monotonic", lambda: now)
    # 10 steps a second at first; then 4 of 5 updates of 10 steps take a second, and the fifth 6 seconds.
    for update in range(1, 100):
        now += 1.0 if update <= 12 or update % 5 else 6.0
        timer.update(Status(10 * update, 1_000, 0.0, None, None, None, "", {}))
        if stops:
            break
    share_per_sec, rate = timer.result(now)
    assert rate == pytest.approx(50 / (4 * 1.0 + 6.0))
    assert share_per_sec == pytest.approx(rate / 1_000)
