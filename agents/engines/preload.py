"""The last module that the fork server of a run imports before it forks processes."""

import gc

# A garbage collection in a worker would write to all objects imported so far, and so copy their memory.
gc.collect()
gc.freeze()
