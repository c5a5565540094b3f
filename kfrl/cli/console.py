"""Where tables are printed."""

from __future__ import annotations

from rich.console import Console

WIDTH = 160
"""Columns where there is no terminal to ask: in a file or a pipe nothing has to be cut to fit."""


def table_console(markup: bool = True) -> Console:
    """Standard output, wide enough for a table where it is no terminal; with or without rich's markup."""
    console = Console(highlight=False, markup=markup)
    if not console.is_terminal:
        console.width = WIDTH
    return console
