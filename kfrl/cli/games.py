"""`kfrl games`: list the games, with the reference scores of Atari-57."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from kfrl.errors import unknown


@dataclass(frozen=True)
class GamesArgs:
    """List the games with their random and human scores of Atari-57; with a filter, their flavours too."""

    filter: tyro.conf.Positional[str] = ""
    """List only games whose name contains this text, or one flavour, `freeway:m1`; case and punctuation are ignored."""


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    args = tyro.cli(GamesArgs, prog="kfrl games", args=list(argv))
    from rich.table import Table

    from envs.games import all_games, find_game, flavours_of
    from kfrl.cli.console import table_console
    from kfrl.compare.stats import REFERENCE_SOURCE, reference_scores

    wanted = re.sub(r"[\W_]", "", args.filter.casefold())
    if ":" in args.filter:
        games = [find_game(args.filter)]
    else:
        games = [game for game in all_games() if wanted in game.title.casefold()]
    if not games:
        titles = (game.title for game in all_games())
        raise unknown("game", args.filter, titles, "`kfrl games` lists them all.")
    table = Table("--game", "ROM", "Atari-57", caption=f"Random and human scores: {REFERENCE_SOURCE}.")
    table.add_column("random", justify="right")
    table.add_column("human", justify="right")
    if wanted:
        table.add_column("flavours")
    for game in games:
        # The published scores are of the default flavour.
        scores = None if game.flavour else reference_scores().get(game.rom)
        known = ("yes", f"{scores.random:,.1f}", f"{scores.human:,.1f}") if scores else ("", "", "")
        flavours = (str(flavours_of(game.rom)),) if wanted else ()
        table.add_row(game.title, game.rom, *known, *flavours)
    table_console().print(table)
    return 0
