"""What runs the updates: asynchronous workers, or one synchronous learner."""
