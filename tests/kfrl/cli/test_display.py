"""What a run says, and to whom."""

import os
import sys
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
    assert "Nobody reads" in said[2]
