import json
from pathlib import Path

import pytest

from kfrl.cli.main import main


@pytest.mark.slow
def test_bench_prints_a_table_and_writes_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.benchmark.EVALUATION_STEPS", 3)
    monkeypatch.setattr("agents.benchmark.FAST_ENVS", 1)
    monkeypatch.setenv("COLUMNS", "150")
    only = "ceiling,random,evaluation-1"
    flags = ["--only", only, "--game", "pong", "--rounds", "2", "--seconds", "0.05", "--json", str(tmp_path / "b.json")]
    assert main(["bench", *flags]) == 0
    shown = capsys.readouterr().out
    assert "emulator alone" in shown
    assert "of the ceiling" in shown
    answer = json.loads((tmp_path / "b.json").read_text())
    assert set(answer["arms"]) == {"ceiling", "random", "evaluation-1"}
    assert all(len(arm["samples"]) == 2 for arm in answer["arms"].values())
    assert answer["game"] == "pong"
    assert {"cores", "processor", "torch", "ale_py"} <= answer["machine"].keys()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--game", "pongg"], "Did you mean"),
        (["--only", "fastt"], "Did you mean 'fast'"),
        (["--rounds", "0"], "rounds"),
        (["--device", "tpu"], "tpu"),
    ],
)
def test_bad_input_is_refused(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *flags]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert "Traceback" not in shown.err
