"""The Hub's own client, offline or with nobody there: no test leaves this machine."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from agents.teachers.hub import download
from agents.teachers.store import load_teacher
from envs.atari import identify
from kfrl.errors import UserError
from kfrl.nets.atari.net import AtariNet

NOWHERE = "http://127.0.0.1:9"
"""The discard port, where nothing listens."""


def kfrl(home: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, because the client reads its settings when it is imported."""
    environment = {"HF_HOME": str(home), "HF_ENDPOINT": NOWHERE, "PATH": "", "OMP_NUM_THREADS": "1", **settings}
    # The client waits longer and longer between its tries.
    code = "import sys, time; time.sleep = lambda s: None; from kfrl.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "teachers", *arguments]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=120)


def cache(home: Path, repo: str, file: str) -> Path:
    """A place in the client's cache, as it lays it out itself."""
    folder = home / "hub" / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    path = folder / "snapshots" / ("0" * 40) / file
    path.parent.mkdir(parents=True)
    return path


def test_a_file_in_the_cache_is_read_offline(tmp_path: Path) -> None:
    torch.save(AtariNet(4, ((4, 8, 4),), 8).state_dict(), cache(tmp_path, "me/agents", "old/ppo.pth"))
    done = kfrl(tmp_path, "show", "hub:me/agents/old/ppo.pth@Breakout", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert "game: breakout" in done.stdout


def test_a_run_keeps_the_commit_of_the_file_that_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Through the real client, which finds the file in its cache.
    torch.save(AtariNet(4, ((4, 8, 4),), 8).state_dict(), cache(tmp_path, "me/agents", "old/ppo.pth"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    commit = "0" * 40
    pinned = f"hub:me/agents@{commit}/old/ppo.pth@breakout"
    for reference in ("hub:me/agents/old/ppo.pth@Breakout", "hub:me/agents@main/old/ppo.pth@Breakout", pinned):
        teacher, exact = load_teacher(reference, tmp_path, identify)
        assert teacher.card.game == "breakout"
        assert exact == pinned


@pytest.mark.parametrize("settings", [{"HF_HUB_OFFLINE": "1"}, {}])
def test_a_hub_out_of_reach_says_how_to_work_offline(tmp_path: Path, settings: dict[str, str]) -> None:
    done = kfrl(tmp_path, "import", "hub:me/agents/ppo.pth@Breakout", "--output", "out.safetensors", **settings)
    assert done.returncode == 2
    assert "kfrl: The Hub cannot be reached, and hub:me/agents/ppo.pth is not in the cache." in done.stderr
    assert "HF_HUB_OFFLINE=1" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("place", ["", "owner", "owner/repo", "owner/repo/", "/repo/file", "owner/repo@/file"])
def test_a_place_that_is_none(place: str) -> None:
    with pytest.raises(UserError, match=f"Expected hub:owner/repo/file .*, got 'hub:{place}'"):
        download(place)


def test_a_name_that_no_repository_can_have() -> None:
    with pytest.raises(UserError, match="cannot be a place on the Hub"):
        download("owner/re..po/file")


def test_without_the_client_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install huggingface-hub"):
        download("owner/repo/file")
