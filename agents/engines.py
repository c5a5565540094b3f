"""Which engine runs which algorithm."""

from __future__ import annotations

from agents.a3c.launcher import A3CTrainer
from agents.sync.trainer import A2CTrainer, PPOTrainer
from agents.training import Trainer

ENGINES: dict[str, type[Trainer]] = {"a3c": A3CTrainer, "a2c": A2CTrainer, "ppo": PPOTrainer}
"""`--algo` -> engine."""
