"""Reinforcement learning: the A3C engine, the methods that plug into it, and the evaluation of what they train."""
