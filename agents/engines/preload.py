"""The last thing that the server of a run's processes imports before it forks them."""

import gc

# A collection in a worker would write to every object imported until here, and so copy them.
gc.collect()
gc.freeze()
