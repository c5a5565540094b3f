"""The synchronous engines: A2C and PPO, one learner on one vector of games."""
