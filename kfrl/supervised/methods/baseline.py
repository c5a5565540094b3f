"""The student alone: cross-entropy with the labels."""

from __future__ import annotations

from kfrl.supervised.methods.base import Method


class Baseline(Method):
    """No teacher and no further term."""


METHOD = Baseline
