"""A term that is asked for has to act."""

from pathlib import Path

import pytest

import agents
from agents.engines import update
from kfrl.runs.metrics import read_metrics
from kfrl.training import proof
from kfrl.training.session import TrainingError

METHOD = """
from agents.methods.base import Method

class Mine(Method):
    def losses(self, net, batch, progress):
        return {{"mine": {term}}}

METHOD = Mine
"""


def train(folder: Path, term: str, algo: str = "a2c") -> Path:
    (folder / "mine.py").write_text(METHOD.format(term=term))
    return agents.train(
        {
            **{"game": "Breakout", "algo": algo, "envs_per_worker": 2, "t_max": 4, "steps": 64, "hidden": 8},
            **{"convs": ((4, 8, 8),), "ppo": {"batch_size": 4, "epochs": 1}, "curve_points": 0, "eval_episodes": 0},
            **{"method": str(folder / "mine.py"), "run_dir": folder / "run"},
        }
    ).folder


@pytest.mark.parametrize("algo", ["a2c", "ppo"])
@pytest.mark.parametrize("term", ["0.0 * batch.logits.sum()", "batch.logits.detach().sum()"])
def test_a_term_without_a_gradient_ends_the_run_and_is_named(
    term: str, algo: str, tmp_path: Path, noise_games: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "PROOF_UPDATES", 3)
    with pytest.raises(TrainingError, match=r"^The term losses/mine had no gradient in its first 3 updates") as error:
        train(tmp_path, term, algo)
    assert "Traceback" not in str(error.value)
    assert "--resume" not in str(error.value)


@pytest.mark.parametrize("term", ["batch.logits.square().sum()", "progress * batch.values.sum()"])
def test_a_term_that_acts_or_begins_to_is_logged_as_ever(
    term: str, tmp_path: Path, noise_games: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "PROOF_UPDATES", 3)
    assert "losses/mine" in read_metrics(train(tmp_path, term) / "metrics.csv")[-1]


def test_looking_for_a_gradient_leaves_the_update_as_it_was(
    tmp_path: Path, noise_games: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    students = []
    for name, unasked in (("one", set(update.ALGORITHM_TERMS)), ("two", {*update.ALGORITHM_TERMS, "mine"})):
        monkeypatch.setattr(update, "ALGORITHM_TERMS", unasked)
        (tmp_path / name).mkdir()
        folder = train(tmp_path / name, "batch.logits.square().sum()")
        students.append((folder / "student.safetensors").read_bytes().rpartition(b"}")[2])
    assert students[0] == students[1]
