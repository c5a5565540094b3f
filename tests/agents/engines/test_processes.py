import os
import platform
import subprocess
import sys
import textwrap

import pytest

from agents.engines.processes import ENVIRONMENT, worker_environment


def test_workers_start_with_capped_threads_unless_the_user_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    with worker_environment():
        assert (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == ("1", "3")
    assert "OMP_NUM_THREADS" not in os.environ
    assert os.environ["MKL_NUM_THREADS"] == "3"


def test_memory_that_a_process_frees_stays_its_own() -> None:
    code = """
        import torch
        from agents.engines.processes import keep_memory
        faults = lambda: __import__("resource").getrusage(0).ru_minflt
        def rollout():  # 32 tensors of 4 MB, freed together
            tensors = [torch.ones(1_000_000) for _ in range(32)]
        def of_two_rollouts():
            rollout()
            before = faults()
            rollout()
            rollout()
            return faults() - before
        print(of_two_rollouts())
        keep_memory()
        print(of_two_rollouts())
    """
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("only glibc is told to keep memory")
    # 2 x 128 MB are 62,500 pages of 4 KB.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    left, kept = map(int, said.split())
    assert kept < 15_000 < 25_000 < left
