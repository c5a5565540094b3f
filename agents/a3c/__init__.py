"""The asynchronous advantage actor-critic engine: Hogwild workers on one model in shared memory."""
