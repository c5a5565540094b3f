import subprocess
from pathlib import Path

import pytest

import kfrl
from kfrl.runs import provenance


@pytest.fixture(autouse=True)
def _fresh() -> None:
    provenance.commit.cache_clear()


def answer(monkeypatch: pytest.MonkeyPatch, **texts: str) -> None:
    monkeypatch.setattr(provenance, "_git", lambda directory, command, *arguments: texts[command.replace("-", "_")])


def test_a_commit_is_marked_when_the_checkout_was_edited(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, rev_parse="abc123", status="")
    assert provenance.commit() == "abc123"
    provenance.commit.cache_clear()
    answer(monkeypatch, rev_parse="abc123", status=" M kfrl/flow/module.py")
    assert provenance.commit() == "abc123+dirty"


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(), subprocess.CalledProcessError(128, "git"), subprocess.TimeoutExpired("git", 10)],
)
def test_without_git_the_version_stands_in(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*arguments: object) -> str:
        raise error

    monkeypatch.setattr(provenance, "_git", fail)
    assert provenance.commit() == kfrl.__version__


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_text("abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert provenance.sha256(tmp_path / "abc") == expected
