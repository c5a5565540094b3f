"""Settings in which runs differ, and short names made from them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

Facts = Mapping[str, Any]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their whole names, `acktr.damping`."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        found |= flat(value, f"{key}.") if isinstance(value, dict) else {key: value}
    return found


def varying(facts: Sequence[Facts]) -> list[str]:
    """The keys with more than one value among `facts`; a missing key does not count as a value."""
    names = dict.fromkeys(name for fact in facts for name in fact)
    return [name for name in names if len({repr(fact[name]) for fact in facts if name in fact}) > 1]


def unique_names(names: Sequence[str], facts: Sequence[Facts]) -> list[str]:
    """Make equal names unique: append the fewest facts that distinguish their owners."""
    unique = list(names)
    for name in {name for name in names if list(names).count(name) > 1}:
        namesakes = [index for index, other in enumerate(names) if other == name]
        for index, words in zip(namesakes, _telling_words([facts[index] for index in namesakes]), strict=True):
            unique[index] = add_words(name, words)
    return unique


def add_words(name: str, words: str) -> str:
    """`name (words)`; if the name ends in brackets already, `words` go into them."""
    if not words:
        return name
    return f"{name[:-1]}, {words})" if name.endswith(")") else f"{name} ({words})"


def teachers_files(checksums: Sequence[str]) -> str:
    """The files of the teachers with these SHA-256, as short text; empty if there are none."""
    return "+".join(each[:8] for each in checksums)


def _telling_words(facts: Sequence[Facts]) -> list[str]:
    """For each of `facts` the values of the fewest keys that distinguish all of them, as text."""
    names = varying(facts)
    for size in range(1, len(names) + 1):
        for chosen in itertools.combinations(names, size):
            words = [", ".join(f"{name}={show(fact.get(name))}" for name in chosen) for fact in facts]
            if len(set(words)) == len(words):
                return words
    return [str(index + 1) for index in range(len(facts))]


def show(value: Any) -> str:
    """A setting's value as short text."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)
