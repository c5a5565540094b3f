"""What the server of a run's processes imports before it forks them."""

import gc

import agents.a3c.worker
import agents.evaluator  # noqa: F401

# A collection in a worker would write to every object of these modules, and so copy them.
gc.collect()
gc.freeze()
