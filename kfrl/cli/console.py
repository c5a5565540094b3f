"""The console that tables are printed on."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

WIDTH = 160
"""Width in characters when the output is a file or a pipe."""


class TableConsole(Console):
    """A console that prints a table too wide for it as a few lines for each row, so that no text is cut."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does, with tables made to fit."""
        super().print(*(self._fitted(each) if isinstance(each, Table) else each for each in objects), **options)

    def _fitted(self, table: Table) -> RenderableType:
        longest = Measurement.get(self, self.options.update(max_width=10_000), table).minimum
        return table if longest <= self.width else Group(*self._blocks(table))

    def _blocks(self, table: Table) -> list[RenderableType]:
        names = [str(column.header).replace("\n", " ") for column in table.columns]
        blocks: list[RenderableType] = [table.title] if table.title else []
        for first, *others in zip(*(column.cells for column in table.columns), strict=True):
            blocks.append(Text.assemble((f"{names[0]} ", "dim"), self._text(first, "bold"), overflow="fold"))
            texts = [(name, self._text(cell)) for name, cell in zip(names[1:], others, strict=True)]
            told = [Text.assemble((f"{name} ", "dim"), text) for name, text in texts if text.plain.strip()]
            blocks.append(Padding(Text(" · ", overflow="fold").join(told), (0, 0, 0, 2), expand=False))
        return blocks + ([table.caption] if table.caption else [])

    def _text(self, cell: Any, style: str = "") -> Text:
        if isinstance(cell, Text):
            return cell
        return self.render_str(str(cell), style=style)


def table_console(markup: bool = True) -> TableConsole:
    """A console on standard output, `WIDTH` wide if that is not a terminal; with or without rich's markup."""
    console = TableConsole(highlight=False, markup=markup)
    if not console.is_terminal:
        console.width = WIDTH
    return console
