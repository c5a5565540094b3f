import pytest
from rich.console import Console

from agents.config import TrainConfig
from agents.trainer import GameStatus
from kfrl.cli.display import panel, plain_line
from kfrl.cli.panel import _engine_lines, view

STATUS = GameStatus(
    done=1_500,
    total=6_000,
    rate=50.0,
    eta_sec=90.0,
    student=None,
    student_at=None,
    part="",
    recent_return=12.5,
    source_returns={},
    metrics={"flow/p_student/conv1": 0.53, "flow/p_student/fc": 0.4, "flow/p_teacher/pong/fc": 0.6},
    dropped=3,
)


def test_the_panel_has_a_line_for_each_fact_and_each_layer() -> None:
    console = Console(width=80, record=True, color_system=None, force_terminal=True)
    console.print(panel("Pong", view(STATUS)))
    lines = console.export_text().splitlines()
    shown = [next(line for line in lines if name in line) for name in ("steps  ", "rate", "ETA", "p conv1", "p fc")]
    for line, value in zip(shown, ("1,500 of 6,000", "50 steps/s", "0:01:30", "0.530", "0.400"), strict=True):
        assert value in line
    assert not any("━" in line for line in lines if "steps" in line), "the bar has a line of its own"
    assert not any("student alone" in line for line in lines)


def test_more_workers_than_cores_are_named_with_what_would_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.config.cores", lambda: 4)
    monkeypatch.setattr("kfrl.cli.panel.cores", lambda: 4)
    first, warning = _engine_lines(TrainConfig(preset="paper"))
    assert "16 workers x 1 games on 4 cores" in first
    assert "16 workers with one thread each share 4 cores: 4 workers share a core" in warning
    assert "--preset fast (4 workers x 32 games)" in warning
    (only,) = _engine_lines(TrainConfig())
    assert "4 workers x 32 games on 4 cores" in only


def test_the_plain_line_says_the_same() -> None:
    assert plain_line(view(STATUS)) == (
        "steps 1,500 of 6,000 · rate 50 steps/s · ETA 0:01:30 · raw return 12.5 · dropped updates 3 · p 0.53 0.40"
    )
