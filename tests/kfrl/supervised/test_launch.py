import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from kfrl import supervised
from kfrl.cli.main import main
from kfrl.errors import UserError
from kfrl.supervised.classifiers import load_classifier

TINY: dict[str, Any] = {"data": "digits", "net": "mlp-8", "epochs": 1, "batch_size": 256}


def test_a_run_in_another_thread_gives_its_student_and_scores(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(supervised.train, {**TINY, "run_dir": tmp_path / "run"}).result()
    assert result.evaluation == json.loads((tmp_path / "run" / "eval.json").read_text())
    assert result.evaluation["test"]["images"] == 359
    saved = load_classifier(tmp_path / "run" / "student.safetensors").net.state_dict()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in result.student.state_dict().items())
    assert (tmp_path / "run" / "curves.png").is_file()
    assert supervised.resume(tmp_path / "run").evaluation == result.evaluation


def test_settings_that_do_not_exist_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Unknown key epoch. Did you mean epochs\?"):
        supervised.train({**TINY, "epoch": 1, "run_dir": tmp_path / "run"})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("independence_at", [None, 0.5])
def test_a_student_that_needs_its_teachers_comes_with_a_warning_and_its_file_has_it(
    tmp_path: Path, independence_at: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = supervised.train({**TINY, "run_dir": tmp_path / "teacher"}).folder
    flow = {"methods": {"knowledge-flow": {"independence_at": independence_at}}, "method": "knowledge-flow"}
    settings = {**TINY, **flow, "epochs": 2, "teachers": str(teacher), "run_dir": tmp_path / "student"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        supervised.train(settings)
    about = [str(one.message) for one in caught if "is not independent" in str(one.message)]
    linked = independence_at is None
    assert len(about) == linked
    caveat = load_classifier(tmp_path / "student" / "student.safetensors").card.caveat
    assert caveat.startswith("Warning: this student is not independent") == linked
    assert bool(caveat) == linked
    capsys.readouterr()
    assert main(["supervised", "eval", str(tmp_path / "student")]) == 0
    assert ("is not independent" in capsys.readouterr().out) == linked
