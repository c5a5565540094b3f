import math
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kfrl.runs.metrics import MetricsWriter, read_metrics


def rows(directory: Path) -> list[dict[str, float]]:
    return read_metrics(directory / "metrics.csv")


def test_rows_come_back_as_numbers(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.log(10, {"losses/policy": 0.1, "charts/updates": 3})
    writer.log(20, {"losses/policy": 1e-30, "charts/updates": math.nan})
    writer.close()
    first, second = rows(tmp_path)
    assert first == {"global_step": 10.0, "losses/policy": 0.1, "charts/updates": 3.0}
    assert all(type(value) is float for row in (first, second) for value in row.values())
    assert second["losses/policy"] == 1e-30
    assert math.isnan(second["charts/updates"])


def test_a_row_can_be_read_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    assert rows(tmp_path) == []
    writer.log(10, {"a": 1.0})
    assert rows(tmp_path) == [{"global_step": 10.0, "a": 1.0}]
    writer.close()


def test_a_column_may_appear_in_the_middle_and_a_cell_may_be_missing(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.log(10, {"b": 1.0})
    writer.log(20, {"a": 2.0, "b": 3.0})
    writer.log(30, {"c": 0.0})
    writer.log(40, {"b": 4.0})
    writer.close()
    assert rows(tmp_path) == [
        {"global_step": 10.0, "b": 1.0},
        {"global_step": 20.0, "a": 2.0, "b": 3.0},
        {"global_step": 30.0, "c": 0.0},
        {"global_step": 40.0, "b": 4.0},
    ]
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == "global_step,b,a,c"
    assert [path.suffix for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_resumed_run_forgets_what_lies_beyond_its_checkpoint(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    for step in (10, 20, 30):
        writer.log(step, {"a": float(step)})
    writer.log(40, {"late": 1.0})
    writer.close()
    writer = MetricsWriter(tmp_path, resume_at=20)
    assert rows(tmp_path) == [{"global_step": 10.0, "a": 10.0}, {"global_step": 20.0, "a": 20.0}]
    writer.log(25, {"a": 5.0, "b": 6.0})
    writer.close()
    assert rows(tmp_path)[2:] == [{"global_step": 25.0, "a": 5.0, "b": 6.0}]


def test_a_run_resumed_at_its_first_step_starts_over(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.log(10, {"a": 1.0})
    writer.close()
    MetricsWriter(tmp_path, resume_at=0).close()
    assert rows(tmp_path) == []


def test_a_run_whose_curves_are_gone_can_be_resumed(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, resume_at=50)
    writer.log(60, {"a": 1.0})
    writer.close()
    assert rows(tmp_path) == [{"global_step": 60.0, "a": 1.0}]


def test_tensorboard_gets_the_same_and_is_purged_on_resume(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    for step in (10, 20, 30):
        writer.log(step, {"losses/policy": step / 4})
    writer.close()
    writer = MetricsWriter(tmp_path, resume_at=20)
    writer.log(40, {"losses/policy": 100.0})
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("losses/policy")] == [(10, 2.5), (20, 5.0), (40, 100.0)]


def test_no_file_is_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.csv") == []


@pytest.mark.parametrize("rest", ["", "1", "30", "30,0.", "30,0.25,1e", "30,0.25,1e-"])
def test_a_row_that_a_crash_cut_off_does_not_stop_a_resumed_run(tmp_path: Path, rest: str) -> None:
    text = "global_step,a,b\r\n10,1.0,2.0\r\n20,3.0,4.0\r\n"
    (tmp_path / "metrics.csv").write_text(text + rest, newline="")
    MetricsWriter(tmp_path, resume_at=20).close()
    assert rows(tmp_path) == [
        {"global_step": 10.0, "a": 1.0, "b": 2.0},
        {"global_step": 20.0, "a": 3.0, "b": 4.0},
    ]
