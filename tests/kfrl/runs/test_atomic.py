import os
from pathlib import Path

import pytest

from kfrl.errors import UserError
from kfrl.runs.atomic import replacing, write_text


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_appears_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    with replacing(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".txt"
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert files(path.parent) == ["a.txt"]


def test_a_crash_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("ha")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert files(tmp_path) == ["a.txt"]


def test_an_interrupt_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("ha")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert files(tmp_path) == ["a.txt"]


def test_a_system_that_refuses_is_told_to_people(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(UserError, match=r"Could not write .*a\.txt: No space left on device\.$"), replacing(path):
        raise OSError(28, os.strerror(28))
    write_text(path, "old")
    with pytest.raises(UserError, match=r"The previous a\.txt is untouched"), replacing(path):
        raise OSError(28, os.strerror(28))
    assert path.read_text() == "old"
    assert files(tmp_path) == ["a.txt"]


def test_a_folder_that_cannot_be_is_told_to_people(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Could not write"):
        write_text(tmp_path / "file" / "a.txt", "text")


def test_the_bytes_are_on_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync, move = os.fsync, Path.replace

    def fsync(handle: int) -> None:
        events.append("sync folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "sync file")
        sync(handle)

    def rename(self: Path, target: Path) -> Path:
        events.append("rename")
        return move(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", rename)
    write_text(tmp_path / "a.txt", "text")
    assert events == ["sync file", "rename", "sync folder"]


def test_files_have_the_rights_that_the_user_asked_for(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640
