"""Two Ray nodes on this machine, one of which dies."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kfrl.sweep.descendants import alive, descendants
from kfrl.sweep.folder import FINISHED, RUNNING, SweepFolder, SweepPlan, domain_of
from kfrl.sweep.space import Spec, make_trials

pytest.importorskip("ray", reason="Ray Tune is not installed: pip install 'kfrl[sweep]'")

HERE = Path(__file__).parent
CODE = """
import sys; from pathlib import Path
from kfrl.cli.sweep import run_sweep; from kfrl.sweep.folder import SweepFolder
sys.exit(run_sweep(SweepFolder(Path(sys.argv[1])), sys.argv[2]))
"""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head of one cpu; every node after it knows where the runs' code is."""
    path = os.pathsep.join([str(HERE), *filter(None, sys.path)])
    for name, value in {"PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}.items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster

    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 * 2**20},
    )
    yield made
    made.shutdown()


def wait_for(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.1)


@pytest.mark.slow
def test_the_trials_of_a_node_that_dies_go_on_elsewhere_from_where_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Any
) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    sys.modules.pop("counting", None)
    plan = SweepPlan("counting", ())
    go = tmp_path / "go"
    spec = Spec(settings={"name": "x", "does": f"wait for {go}", "seed": {"range": 2}})
    plan = replace(plan, trials=tuple(make_trials(spec, domain_of(plan))))
    folder = SweepFolder(tmp_path / "sweep")
    folder.prepare(plan)
    second = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    sweep = subprocess.Popen([sys.executable, "-c", CODE, str(folder.path), cluster.address])
    try:
        both_wait = [(RUNNING, 0.5)] * 2
        wait_for(lambda: [(one.state, one.share) for one in folder.states_noted(plan).values()] == both_wait)
        lost = descendants(second.all_processes["raylet"][0].process.pid)
        cluster.remove_node(second, allow_graceful=False)
        wait_for(lambda: not any(map(alive, lost)))
        go.touch()
        assert sweep.wait(timeout=300) == 0
    finally:
        sweep.kill()
    assert [state.state for state in folder.states(plan).values()] == [FINISHED] * 2
    began = [json.loads(folder.run(trial).evaluation.read_text())["began"] for trial in plan.trials]
    assert sorted(began) == [1, 6]
