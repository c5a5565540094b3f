"""`kfrl doctor`: check this machine; for each problem print the command that fixes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

if TYPE_CHECKING:
    from kfrl.machine import Finding


@dataclass(frozen=True)
class DoctorFlags:
    """Check versions, cores, threads, memory, /dev/shm, disk, GPU and ROMs; say what is missing and how to fix it.

    The exit code is 1 if there is a problem.
    """

    runs: Path = Path("runs")
    """The folder for runs; the free space of its disk is checked."""


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    flags = tyro.cli(DoctorFlags, prog="kfrl doctor", args=list(argv))
    from rich.table import Table
    from rich.text import Text

    from kfrl.cli.console import table_console
    from kfrl.machine import findings

    console = table_console(markup=False)
    found = [*findings(flags.runs), check_roms()]
    facts = Table.grid(padding=(0, 2))
    for finding in found:
        facts.add_row(finding.name, Text(finding.value, style="bold red" if finding.problem else ""))
    console.print(facts)
    wrong = [finding for finding in found if finding.problem]
    for finding in wrong:
        console.print(f"\n{finding.warning}", soft_wrap=True)
    if not wrong:
        console.print(
            "\nNothing is missing. Try: kfrl train --game Alien --teachers seaquest --dry-run", soft_wrap=True
        )
    return 1 if wrong else 0


def check_roms() -> Finding:
    """Check the ROMs that ale-py ships; kfrl uses no others."""
    from envs.games import all_games
    from kfrl.machine import Finding

    try:
        count = len(all_games())
    except (ImportError, OSError) as error:
        return Finding("ROMs", f"none ({error})", "ale-py does not load.", "pip install --force-reinstall ale-py")
    if count:
        return Finding("ROMs", f"{count} games")
    return Finding("ROMs", "none", "This ale-py has no ROMs.", "pip install --force-reinstall ale-py")
