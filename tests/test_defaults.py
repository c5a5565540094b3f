"""docs/defaults.md is the code's."""

import inspect
import math
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3 import A2C

from agents.config import Shape, TrainConfig
from agents.methods import get_method, knowledge_flow, method_names, policy_distillation
from agents.methods.knowledge_flow import KnowledgeFlowMethod
from agents.methods.policy_distillation import PolicyDistillation
from agents.run import resolve
from kfrl.machine import cores

PAGE = (Path(__file__).parents[1] / "docs" / "defaults.md").read_text()
ROWS = dict(re.findall(r"^\| `([a-z0-9_.-]+)` \| (.*?) \| .+ \|$", PAGE, re.MULTILINE))
WORDS = {None: re.compile(r"equal share|by \w+|steps"), "": re.compile("-"), (): re.compile("-")}
"""What a default that is no number or name may be called."""


def known() -> Iterator[tuple[str, Any]]:
    config = TrainConfig()
    held = {name: value for name, value in vars(config).items() if name != "methods"}
    held |= {name: get_method(name).read_settings(config) for name in method_names()}
    for name, value in held.items():
        if is_dataclass(value):
            yield from ((f"{name}.{inner.name}", getattr(value, inner.name)) for inner in fields(value))
        else:
            yield name, value


def shaped(name: str) -> str:
    """Under each `--algo`, as the page has it: workers by the machine's cores, a3c's learning rate for one game."""

    def of(algo: str) -> str:
        shape = TrainConfig(algo=algo).shape
        if algo == "a3c" and name == "workers":
            assert shape.workers == cores()
            return "cores"
        value = getattr(shape, name)
        return f"{value / math.sqrt(shape.envs_per_worker):.0e}" if (algo, name) == ("a3c", "lr") else str(value)

    return " / ".join(of(algo) for algo in ("a3c", "a2c", "ppo", "acktr"))


def said(name: str, value: Any) -> bool:
    if name in {field.name for field in fields(Shape)}:
        return ROWS[name] == shaped(name)
    if value == {}:
        return ROWS[name] == "-"
    if value in WORDS:
        return WORDS[value].fullmatch(ROWS[name]) is not None
    return ROWS[name] == (str(value)[1:-1] if isinstance(value, tuple) else str(value))


def test_the_page_has_every_default_and_no_other() -> None:
    defaults = dict(known())
    assert ROWS.keys() == defaults.keys()
    assert [(name, ROWS[name], value) for name, value in defaults.items() if not said(name, value)] == []


def test_the_page_says_which_shape_and_memory_the_figures_are_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.config.cores", lambda: 2)
    config = TrainConfig()
    shape = config.shape
    memories = {
        "Knowledge Flow": (KnowledgeFlowMethod(config).own.imitation_memory, knowledge_flow.MEASURED_MEMORY),
        "all methods": (PolicyDistillation(config).own.replay_memory, policy_distillation.MEASURED_MEMORY),
    }
    measured = re.findall(
        r"^\| (.*?) \(\[.*?\]\(.*?\)\) \| (\d+) x (\d+).*? \| ([\d.e-]+) \| (.*?) \|$", PAGE, re.MULTILINE
    )
    rows = {name: (int(workers), int(games), lr, memory) for name, workers, games, lr, memory in measured}
    assert len(rows) == 5
    for name, (memory, measured_memory) in memories.items():
        assert rows[name][3] == f"{memory // rows[name][0]:,} samples" == f"{measured_memory:,} samples"
    assert rows["Knowledge Flow"][:2] == (shape.workers, shape.envs_per_worker)
    assert float(rows["Knowledge Flow"][2]) == pytest.approx(shape.lr, abs=1e-5)


@pytest.mark.parametrize(
    ("method", "game", "memory"),
    [
        ("policy-distillation", "Seaquest", "--replay-memory 131,072 (3.4 GiB)"),
        ("actor-mimic", "Pong", "--replay-memory 131,072 (3.4 GiB)"),
        ("knowledge-flow", "Seaquest", "--imitation-memory 524,288 (13.8 GiB)"),
    ],
)
@pytest.mark.parametrize(("machine", "smaller"), [(2, False), (16, True)])
def test_a_run_on_more_cores_says_that_its_replay_buffers_are_smaller_than_measured(
    method: str, game: str, memory: str, machine: int, smaller: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.config.cores", lambda: machine)
    run = resolve(TrainConfig(game, teachers="zoo:seaquest", method=method))
    assert run.config.shape.workers == machine
    built = run.built()
    notes = " ".join(built.method.notes(built.net))
    assert (memory in notes) == smaller
    assert ("smaller than those of the published figures" in notes) == smaller
    alone = resolve(TrainConfig(game, teachers="zoo:seaquest", method=method, algo="a2c")).built()
    assert "smaller than" not in " ".join(alone.method.notes(alone.net))


def test_a2c_has_stable_baselines3s_numbers() -> None:
    theirs = {name: parameter.default for name, parameter in inspect.signature(A2C).parameters.items()}
    ours = TrainConfig(algo="a2c")
    shape = ours.shape
    assert (shape.t_max, shape.lr, shape.max_grad_norm) == (
        theirs["n_steps"],
        theirs["learning_rate"],
        theirs["max_grad_norm"],
    )
    assert ours.gamma == theirs["gamma"]
    assert shape.value_loss_coef / 2 == theirs["vf_coef"], "theirs is on the whole square"
