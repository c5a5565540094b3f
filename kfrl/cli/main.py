"""`kfrl`: run the command that is asked for, and print its errors as sentences."""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from collections.abc import Mapping, Sequence

import kfrl
from kfrl.errors import UserError, unknown

COMMANDS = {
    "train": "kfrl.cli.train",
    "eval": "kfrl.cli.evaluate",
    "collect": "kfrl.cli.collect",
    "fold": "kfrl.cli.fold",
    "export": "kfrl.cli.export",
    "push": "kfrl.cli.push",
    "compare": "kfrl.cli.compare",
    "teachers": "kfrl.cli.teachers",
    "plot": "kfrl.cli.plot",
    "report": "kfrl.cli.report",
    "sensitivity": "kfrl.cli.sensitivity",
    "games": "kfrl.cli.games",
    "supervised": "kfrl.cli.supervised",
    "tabular": "kfrl.cli.tabular",
    "sweep": "kfrl.cli.sweep",
    "bench": "kfrl.cli.bench",
    "doctor": "kfrl.cli.doctor",
    "completion": "kfrl.cli.completion",
}

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk, an exceeded quota and a file over the size limit."""

USAGE = """\
usage: kfrl COMMAND [OPTIONS]

Transfer knowledge between deep nets in reinforcement and supervised learning.

  train       train a student on a game, alone or with frozen teachers
  eval        score a run or an agent file: 30 no-op episodes
  compare     compare runs: methods over seeds and games, with intervals
  report      write one HTML page on runs: curves, comparison, games, settings
  plot        draw a run: returns, and p of student and teachers per layer
  sensitivity measure what a progressive student takes from which column
  teachers    list, show, check and import agents that can teach
  collect     store teachers' outputs on a game, to train from the file
  fold        turn a student that still has links into a plain net
  export      write a student for other programs: ONNX, TorchScript, tensors
  push        upload a student to the Hugging Face Hub, with its scores
  games       list the games
  sweep       run many trainings from one file, on this machine or a cluster
  supervised  train, eval and compare image classifiers
  tabular     train, eval and compare small models of tables
  bench       measure how fast this machine emulates, trains and evaluates
  doctor      check this machine; say what is missing and how to fix it
  completion  print a script for bash or zsh that completes commands and flags

Help: kfrl COMMAND --help. Start: kfrl train --game Alien --teachers seaquest
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 (failed), 2 (bad input), 130/143 (stopped)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if arguments[0] == "--version":
        print(f"kfrl {kfrl.__version__}")
        return 0
    # Plots go to files. `!kfrl` in a notebook inherits the notebook's backend, which may not be installed here.
    os.environ["MPLBACKEND"] = "agg"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # PyTorch reads this when it is imported. Waiting threads that spin would take cores from the emulator.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        from kfrl.cli.flags import whole_numbers

        with whole_numbers():
            return run_command(arguments, COMMANDS)
    except UserError as error:
        print(f"kfrl: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        print(f"kfrl: {error.strerror}: {error.filename or 'a file could not be written'}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def run_command(arguments: Sequence[str], commands: Mapping[str, str]) -> int:
    """Run the command that the first argument names, with the other arguments; returns its exit code.

    Raises:
        UserError: there is no such command; the message names the nearest one.
    """
    command, *rest = arguments
    if command not in commands:
        raise unknown("command", command, commands)
    code: int = importlib.import_module(commands[command]).main(rest)
    return code


if __name__ == "__main__":
    sys.exit(main())
