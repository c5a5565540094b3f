"""What a run says, and to whom."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kfrl.cli.display import open_display


def test_a_run_goes_on_when_nobody_reads_standard_output_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        with open_display(tmp_path / "log.txt", lambda _: pytest.fail("no status")) as display:
            display.say("first")
            os.close(reader)
            display.say("second")
            display.say("third")
    said = (tmp_path / "log.txt").read_text().splitlines()
    assert [said[0], said[1], said[-1]] == ["first", "second", "third"]
    assert "was closed; the run continues" in said[2]


def test_a_notebooks_backend_and_an_ascii_terminal_end_nothing(
    finished_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = finished_run(tmp_path / "läuft")
    strange = {"MPLBACKEND": "module://not_installed.backend_inline", "PYTHONIOENCODING": "ascii", "LANG": "C"}
    command = [sys.executable, "-m", "kfrl.cli.main", "plot", str(run)]
    done = subprocess.run(command, env={**os.environ, **strange}, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert "l?uft" in done.stdout
    assert (run / "curves.png").is_file()
