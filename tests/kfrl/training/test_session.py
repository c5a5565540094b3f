"""Folders of new runs."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from kfrl.errors import UserError
from kfrl.runs.folder import RunFolder
from kfrl.training.session import begin


@dataclass(frozen=True)
class Settings:
    lr: float
    run_dir: Path


@dataclass(frozen=True)
class Run:
    config: Settings
    folder: RunFolder


def run(path: Path, lr: float) -> Run:
    return Run(Settings(lr, path), RunFolder(path))


def test_runs_that_begin_in_the_same_second_have_folders_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "pong" / "a3c" / "none-s1-20261125-120000"
    begun = [begin(run(path, lr), "kfrl train", named=False) for lr in (0.1, 0.2, 0.3)]
    assert [each.folder.path.name for each in begun] == [path.name, f"{path.name}-2", f"{path.name}-3"]
    assert [each.config.run_dir for each in begun] == [each.folder.path for each in begun]
    assert [yaml.safe_load(each.folder.config.read_text())["lr"] for each in begun] == [0.1, 0.2, 0.3]


def test_a_folder_that_the_user_chose_is_given_to_one_run(tmp_path: Path) -> None:
    path = tmp_path / "my run"
    begin(run(path, 0.1), "kfrl train", named=True)
    with pytest.raises(UserError, match=r"exists.*kfrl train --resume '.*my run'"):
        begin(run(path, 0.2), "kfrl train", named=True)
    assert yaml.safe_load((path / "config.yaml").read_text())["lr"] == 0.1
