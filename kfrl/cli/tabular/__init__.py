"""`kfrl tabular`: small models for tables, taught by large ones."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from kfrl.errors import UserError

COMMANDS = {
    "train": "kfrl.cli.tabular.train",
    "eval": "kfrl.cli.tabular.evaluate",
    "compare": "kfrl.cli.tabular.compare",
}

USAGE = """\
usage: kfrl tabular COMMAND [OPTIONS]

Train a small model to imitate an ensemble on a table: born-again trees and model compression, with CART to compare.

  train      train and test on random splits of a table
  eval       count a student's errors on its test cases or on another table; write its predictions
  compare    put runs side by side: errors, leaves, and the share of the ensemble's gain

`kfrl tabular COMMAND --help` explains a command. For example:

  kfrl tabular train --data ionosphere --splits 10
  kfrl tabular train --data customers.csv --target churned
"""


def main(argv: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    from kfrl.cli.main import run_command

    if find_spec("sklearn") is None:
        raise UserError("kfrl tabular needs scikit-learn, which is not installed: pip install scikit-learn")
    return run_command(argv, COMMANDS)
