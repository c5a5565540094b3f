from pathlib import Path

import pytest

from agents.config import TrainConfig
from agents.runs import resolve
from kfrl.config import load_config
from kfrl.nets.registry import arch_of
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.data import SETS
from kfrl.supervised.methods import get_method

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted((CONFIGS / "atari").glob("**/*.yaml"))
SUPERVISED = sorted((CONFIGS / "supervised").glob("**/*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_config_loads_and_differs_from_the_defaults(path: Path) -> None:
    assert load_config(path, TrainConfig) != TrainConfig()


def test_quickstart_is_alien_from_the_zoos_seaquest_and_ends_independent() -> None:
    config = load_config(CONFIGS / "atari" / "quickstart.yaml", TrainConfig)
    run = resolve(config)
    assert run.protocol.game == "alien"
    assert run.config.method_name == "knowledge-flow"
    assert [teacher.card.game for teacher in run.teachers] == ["seaquest"]
    assert run.config.flow.independence_at is not None


@pytest.mark.parametrize("name", ["paper", "reproduction"])
def test_what_goes_beyond_the_paper_is_off(name: str) -> None:
    config = load_config(CONFIGS / "atari" / f"{name}.yaml", TrainConfig)
    flow = config.flow
    assert (flow.independence_at, flow.handover_coef, flow.link_heads, flow.layer_weights_lr) == (None, 0, "never", 1)
    assert not flow.match_scales
    assert (config.shape.workers, config.shape.envs_per_worker, config.shape.t_max, config.shape.lr) == (16, 1, 5, 1e-4)
    assert (config.steps, config.gamma, config.entropy_coef, config.shape.max_grad_norm) == (40_000_000, 0.99, 0.01, 40)


@pytest.mark.parametrize("path", SUPERVISED, ids=lambda path: path.name)
def test_every_supervised_config_names_what_there_is(path: Path) -> None:
    config = load_config(path, SupervisedConfig)
    get_method(config.method_name).check_teachers(config.method_name, len(config.teacher_names) or 1)
    if config.net is not None:
        arch_of(config.net)
    for name in (config.data, *config.teacher_names):
        assert name.partition("-no-")[0] in {*SETS, ""}


def test_the_supervised_paper_config_has_nothing_beyond_the_paper() -> None:
    flow = load_config(CONFIGS / "supervised" / "paper.yaml", SupervisedConfig).flow
    assert (flow.independence_at, flow.handover_coef, flow.link_heads, flow.layer_weights_lr) == (None, 0, "never", 1)
