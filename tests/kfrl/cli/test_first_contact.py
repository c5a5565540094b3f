"""What a new user meets first: help, tables on a small screen, a terminal without colour or Unicode, completion."""

import io
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from kfrl.cli.completion import script
from kfrl.cli.console import TableConsole
from kfrl.cli.main import COMMANDS, USAGE, main
from kfrl.cli.supervised import COMMANDS as SUPERVISED

ROOT = Path(__file__).parents[3]


def test_the_help_is_one_screen_and_names_every_command() -> None:
    lines = USAGE.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert {line.split()[0] for line in lines if line.startswith("  ")} == set(COMMANDS)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("trainn", "train"), ("teacher", "teachers"), ("supervised tra", "train"), ("tabular compar", "compare")],
)
def test_a_mistyped_command_comes_with_the_nearest(typed: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(typed.split()) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert f"Unknown command {typed.split()[-1]!r}. Did you mean {meant!r}?" in said.err


def shown(width: int, *, markup: bool = True, terminal: bool = True) -> str:
    table = Table("agent", "mean\nscore", "notes", title="Agents", caption="As of today.")
    table.add_row("zoo:a-rather-long-name-without-a-space", "1,657.3", "[bold]good[/]" if markup else "[brackets]")
    table.add_row("b", "", Text("styled"))
    file = io.StringIO()
    TableConsole(file=file, width=width, force_terminal=terminal, markup=markup, color_system=None).print(table)
    return file.getvalue()


def test_a_table_that_would_cut_words_becomes_lines() -> None:
    wide, narrow = shown(100), shown(50)
    assert "│" in wide
    assert "│" not in narrow and "…" not in narrow
    assert narrow.splitlines() == [
        "Agents",
        "agent zoo:a-rather-long-name-without-a-space",
        "  mean score 1,657.3 · notes good",
        "agent b",
        "  notes styled",
        "As of today.",
    ]
    assert "[brackets]" in shown(50, markup=False)


def test_the_teachers_fit_on_eighty_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kfrl.cli.console.WIDTH", 80)
    assert main(["teachers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    assert "7,471.7" in "".join(lines)


def test_a_terminal_without_unicode_gets_ascii(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert main(["teachers"]) == 0
    assert main(["doctor"]) in (0, 1)
    sys.stdout.flush()
    assert "zoo:seaquest" in written.getvalue().decode("ascii")


def test_no_colour_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {"NO_COLOR": "1", "FORCE_COLOR": "1", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    file = io.StringIO()
    console = TableConsole(file=file, force_terminal=True)
    console.print("[bold red]Warning[/]")
    # Bold is no colour.
    assert file.getvalue() == "\x1b[1mWarning\x1b[0m\n"


COMPLETE = """
kfrl() {{ {python} -m kfrl.cli.main "$@"; }}
{script}
ask() {{ COMP_WORDS=(kfrl "$@"); COMP_CWORD=$#; COMPREPLY=(); _kfrl; echo "${{COMPREPLY[*]}}"; }}
ask tra
ask supervised co
ask train --algo a
ask train --no-dr
ask supervised data --he
"""


def test_bash_completes_commands_flags_and_values() -> None:
    text = COMPLETE.format(python=sys.executable, script=script("bash"))
    ran = subprocess.run(["bash", "-c", text], capture_output=True, text=True, cwd=ROOT)
    assert ran.stderr == ""
    assert ran.stdout.splitlines() == ["train", "collect compare", "a3c a2c acktr", "--no-dry-run", "--help"]


ZSH = """
kfrl() {{ {python} -m kfrl.cli.main "$@"; }}
compdef() {{ }}
compadd() {{ shift; print -r -- "$@"; }}
_describe() {{ print -r -- "${{(P)2}}"; }}
{script}
ask() {{ words=(kfrl "$@"); CURRENT=$(($# + 1)); _kfrl; }}
ask supervised ''
ask train --no-dr
"""


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_completes_commands_and_flags() -> None:
    text = ZSH.format(python=sys.executable, script=script("zsh"))
    ran = subprocess.run(["zsh", "-fc", text], capture_output=True, text=True, cwd=ROOT)
    assert ran.stderr == ""
    commands, flags = ran.stdout.splitlines()
    assert commands.split() == list(SUPERVISED)
    assert flags.startswith("--no-dry-run:Print the plan and the cost of the run")


def test_a_reader_that_goes_away_sees_no_traceback() -> None:
    command = [sys.executable, "-u", "-m", "kfrl.cli.main", "train", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
