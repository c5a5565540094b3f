from pathlib import Path

from kfrl.runs import history


def test_rows_are_kept_up_to_a_step(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    assert history.read(path) == []
    history.add(path, 10, [{"teacher": "a", "why": "one, two"}])
    history.add(path, 20, [{"teacher": "b", "why": ""}])
    assert history.read(path) == [
        {"global_step": "10", "teacher": "a", "why": "one, two"},
        {"global_step": "20", "teacher": "b", "why": ""},
    ]
    history.forget_after(path, 15)
    assert [row["teacher"] for row in history.read(path)] == ["a"]
    history.forget_after(path, 5)
    assert not path.exists()
