"""`kfrl completion`: a script with which the shell completes commands and flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import Template
from typing import Literal

import tyro

GROUPS = ("supervised", "tabular")
"""Commands with subcommands that tyro does not parse."""

# tyro writes a script for each command. It is generated once, when the command is first completed, and gets the words
# without the command, because tyro's script knows only one program name.
BASH = Template("""\
# bash completion of kfrl. In ~/.bashrc: eval "$$(kfrl completion bash)"
_kfrl() {
  local commands="$commands" depth=1
  case "$${COMP_WORDS[1]}" in
$cases
  esac
  if ((COMP_CWORD <= depth)); then
    COMPREPLY=($$(compgen -W "$$commands" -- "$${COMP_WORDS[COMP_CWORD]}"))
    return
  fi
  local -a asked=("$${COMP_WORDS[@]:1:depth}")
  local name="_tyro_kfrl$$(printf '_%s' "$${asked[@]}")"
  if ! declare -F "$$name" >/dev/null; then
    eval "$$("$${COMP_WORDS[0]}" "$${asked[@]}" --tyro-print-completion bash 2>/dev/null)"
    complete -r "$${asked[@]}" 2>/dev/null
    complete -F _kfrl kfrl
  fi
  COMP_WORDS=("$${COMP_WORDS[0]}" "$${COMP_WORDS[@]:depth+1}")
  COMP_CWORD=$$((COMP_CWORD - depth))
  "$$name"
}
complete -F _kfrl kfrl
""")
ZSH = Template("""\
# zsh completion of kfrl. In ~/.zshrc, after compinit: eval "$$(kfrl completion zsh)"
typeset -gA _kfrl_scripts
_kfrl() {
  local commands="$commands" depth=1
  case "$${words[2]}" in
$cases
  esac
  if ((CURRENT <= depth + 1)); then
    compadd -- $${=commands}
    return
  fi
  local asked="$${words[2,depth+1]}"
  if [[ -z "$${_kfrl_scripts[$$asked]}" ]]; then
    _kfrl_scripts[$$asked]="$$($${words[1]} $${=asked} --tyro-print-completion zsh 2>/dev/null)"
  fi
  words=("$${words[1]}" "$${(@)words[depth+2,-1]}")
  ((CURRENT -= depth))
  eval "$${_kfrl_scripts[$$asked]}"
}
compdef _kfrl kfrl
""")


@dataclass(frozen=True)
class CompletionFlags:
    """Print a script with which the shell completes commands, flags and their values.

    In ~/.bashrc: eval "$(kfrl completion bash)"; in ~/.zshrc, after compinit: eval "$(kfrl completion zsh)".
    """

    shell: tyro.conf.Positional[Literal["bash", "zsh"]]
    """The shell."""


def main(argv: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    flags = tyro.cli(CompletionFlags, prog="kfrl completion", args=list(argv))
    print(script(flags.shell), end="")
    return 0


def script(shell: str) -> str:
    """The script for `bash` or `zsh`."""
    from importlib import import_module

    from kfrl.cli.main import COMMANDS

    cases = []
    for group in GROUPS:
        own = " ".join(import_module(COMMANDS[group]).COMMANDS)
        word = "COMP_CWORD > 1" if shell == "bash" else "CURRENT > 2"
        cases.append(f'    {group}) (({word})) && commands="{own}" && depth=2 ;;')
    template = BASH if shell == "bash" else ZSH
    return template.substitute(commands=" ".join(COMMANDS), cases="\n".join(cases))
