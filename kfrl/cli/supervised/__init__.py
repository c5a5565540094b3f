"""`kfrl supervised`: image classifiers."""

from __future__ import annotations

from collections.abc import Sequence

COMMANDS = {
    "train": "kfrl.cli.supervised.train",
    "search": "kfrl.cli.supervised.search",
    "eval": "kfrl.cli.supervised.evaluate",
    "collect": "kfrl.cli.supervised.collect",
    "compare": "kfrl.cli.supervised.compare",
    "data": "kfrl.cli.supervised.data",
}

USAGE = """\
usage: kfrl supervised COMMAND [OPTIONS]

Transfer knowledge between image classifiers.

  train      train a classifier, alone or with frozen teachers
  search     choose a transfer graph, or Knowledge Flow's lambdas, on validation images
  eval       count a classifier's errors on test images
  collect    store the teachers' logits on training images, for runs without teachers
  compare    put runs side by side: methods over seeds and data sets
  data       list the data sets, the nets and the methods

`kfrl supervised COMMAND --help` explains a command. `kfrl plot RUN` draws a run. For example:

  kfrl supervised train --data emnist-digits
  kfrl supervised train --data emnist-letters --teachers emnist-digits
"""


def main(argv: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    from kfrl.cli.main import run_command

    return run_command(argv, COMMANDS)
