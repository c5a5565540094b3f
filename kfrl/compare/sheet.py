"""A table of text cells, for the terminal, Markdown, LaTeX and HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text
from tabulate import tabulate


@dataclass(frozen=True)
class Sheet:
    """A table of text cells; the first `left` columns are left-aligned, the others right-aligned."""

    title: str
    columns: Sequence[str]
    """Names of the columns. A line break in a name is kept in the terminal; elsewhere it becomes a space."""
    rows: Sequence[Sequence[str]]
    left: int = 1
    """Number of left-aligned columns."""

    def rich(self) -> Table:
        """The table for the terminal."""
        table = Table(title=Text(self.title), title_justify="left")
        for index, column in enumerate(self.columns):
            table.add_column(Text(column), justify="left" if index < self.left else "right")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table

    def markdown(self) -> str:
        """The table in Markdown."""
        escaped = [[cell.replace("|", r"\|") for cell in row] for row in (self.columns, *self.rows)]
        return self._tabulate(escaped[0], escaped[1:], "pipe")

    def latex(self, notes: Iterable[str]) -> str:
        """The table as a booktabs tabular to include; the title and the notes come first, as comments."""
        comments = "".join(f"% {line}\n" for text in (self.title, *notes) for line in text.splitlines())
        return comments + self._tabulate(self.columns, self.rows, "latex_booktabs") + "\n"

    def _tabulate(self, columns: Sequence[str], rows: Sequence[Sequence[str]], form: str) -> str:
        sides = ["left" if index < self.left else "right" for index in range(len(columns))]
        names = [column.replace("\n", " ") for column in columns]
        return tabulate(rows, names, tablefmt=form, colalign=sides, disable_numparse=True)
