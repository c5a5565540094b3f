"""Engines, which run the updates: asynchronous workers, or one synchronous learner."""
