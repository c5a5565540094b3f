"""The engines by algorithm."""

from __future__ import annotations

from agents.engines.a3c import A3CTrainer
from agents.engines.acktr import ACKTRTrainer
from agents.engines.synchronous import A2CTrainer, PPOTrainer
from agents.trainer import Trainer

ENGINES: dict[str, type[Trainer]] = {"a3c": A3CTrainer, "a2c": A2CTrainer, "ppo": PPOTrainer, "acktr": ACKTRTrainer}
"""`--algo` -> engine."""
