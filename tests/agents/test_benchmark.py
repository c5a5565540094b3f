import mmap
from pathlib import Path
from typing import Any

import pytest

from agents.benchmark import Benchmark, BenchmarkArm, Sample, Stopwatch, pss_mb
from agents.config import TrainConfig
from agents.engines.settings import ACKTRConfig
from kfrl.errors import UserError
from kfrl.training.status import Status


@pytest.fixture
def benchmark(tmp_path: Path) -> Benchmark:
    return Benchmark("pong", tmp_path)


def arm(name: str, *rates: float) -> BenchmarkArm:
    return BenchmarkArm(name, name, lambda seconds: Sample(0.0), [Sample(rate) for rate in rates])


def test_a_share_is_the_median_of_the_ratios_within_a_round(benchmark: Benchmark) -> None:
    # Ratios 0.5, 0.1, 0.9; the ratio of the medians would be 0.3.
    one, other = arm("a2c", 50.0, 30.0, 90.0), arm("fast", 100.0, 300.0, 100.0)
    benchmark.arms = {"fast": other, "a2c": one}
    assert benchmark.share(one, "fast") == "0.50"
    assert benchmark.share(one, "ceiling") == ""
    assert benchmark.share(other, "fast") == ""
    assert (one.rate, one.spread) == (50.0, (30.0, 90.0))


def test_arms_take_turns(benchmark: Benchmark) -> None:
    order: list[str] = []

    def measure(name: str) -> BenchmarkArm:
        return BenchmarkArm(name, name, lambda seconds: order.append(name) or Sample(seconds))

    benchmark.arms = {name: measure(name) for name in ("a", "b")}
    turns = [(index, turn.name) for index, turn in benchmark.run(2, 1.5)]
    assert order == ["a", "b", "a", "b"]
    assert turns == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]
    assert [sample.steps_per_sec for sample in benchmark.arms["a"].samples] == [1.5, 1.5]


def test_an_unknown_arm_is_refused_with_the_nearest(benchmark: Benchmark) -> None:
    with pytest.raises(UserError, match=r"Unknown benchmark 'flow1'\. Did you mean 'flow-1'\?"):
        benchmark.pick(["flow1"])


def test_the_other_flavour_is_the_first_that_the_game_is_not_in(tmp_path: Path) -> None:
    def titles(game: str) -> list[str]:
        return [arm.title for arm in Benchmark(game, tmp_path).arms.values() if arm.name == "flavour"]

    assert titles("pong") == ["a3c, --preset fast, flavour m0d1"]
    assert titles("freeway:m1d0") == ["a3c, --preset fast, flavour m0d0"]
    assert not titles("kaboom")


@pytest.mark.parametrize(("cores", "workers"), [(1, []), (2, [1]), (5, [1, 2, 4]), (8, [1, 2, 4])])
def test_the_fast_shape_is_measured_with_fewer_workers_too(
    cores: int, workers: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.benchmark.cores", lambda: cores)
    names = Benchmark("pong", tmp_path).arms
    assert [name for name in names if name.startswith("fast-")] == [f"fast-{count}" for count in workers]


def test_memory_is_that_of_this_process() -> None:
    before = pss_mb()
    if not before:
        pytest.skip("this system does not tell proportional set sizes")
    with mmap.mmap(-1, 200_000_000) as block:
        for _ in range(200):
            block.write(b"x" * 1_000_000)
        grown = pss_mb()[0] - before[0]
    assert 190 < grown < 220


@pytest.mark.slow
def test_a_training_run_is_timed_and_stopped(benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.benchmark.WARM_UP", 0.1)
    sample = benchmark.training("flow-1", workers=1, envs_per_worker=2).measure(0.5)
    assert sample.steps_per_sec > 0
    if sample.pss_mb:
        assert len(sample.pss_mb) == 2  # the launcher and its worker


def rate_of(clock: Stopwatch, monkeypatch: pytest.MonkeyPatch, updates: list[float], samples: int) -> Sample:
    """Feed a clock a status after each update, which takes the given seconds, until it stops the run."""
    stopped: list[Any] = []
    monkeypatch.setattr("agents.benchmark.os.kill", lambda *given: stopped.append(given))
    monkeypatch.setattr("agents.benchmark.pss_mb", tuple)
    for index in range(len(updates)):
        now = sum(updates[: index + 1])
        monkeypatch.setattr("agents.benchmark.time.perf_counter", lambda now=now: now)
        clock.update(Status((index + 1) * samples, 10**9, 0.0, None, None, None, "", {}))
        if stopped:
            break
    return clock.sample()


@pytest.mark.parametrize("seconds", [0.5, 4.0, 30.0])
def test_acktr_is_timed_without_its_cold_updates_and_over_whole_periods(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(
        algo="acktr", envs_per_worker=2, t_max=4, acktr=ACKTRConfig(inverse_period=5), game="Pong"
    ).with_shape()
    # A decomposition before the first natural update, which is the 12th, and then before each 5th after the 15th.
    updates = [1.0] * 11 + [9.0] + [9.0 if index % 5 == 0 else 1.0 for index in range(12, 100)]
    sample = rate_of(Stopwatch.of(config, seconds), monkeypatch, updates, samples=8)
    assert sample.steps_per_sec == pytest.approx(5 * 8 / (9.0 + 4 * 1.0))


def test_another_algorithm_is_timed_for_the_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(algo="a2c", game="Pong").with_shape()
    sample = rate_of(Stopwatch.of(config, 2.0), monkeypatch, [1.0] * 4 + [0.5] * 100, samples=80)
    assert sample.steps_per_sec == pytest.approx(80 / 0.5)
