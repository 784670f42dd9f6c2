"""Entries of the store: one process at a time is at work in one, and what is old goes."""

import fcntl
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sdlora import records
from sdlora.errors import DataError
from sdlora.flow import store


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An entry with files and a folder in it."""
    monkeypatch.chdir(tmp_path)
    entry = store.entry("kind", "key")
    for name in ("a.png", "hashes.json", "state/1", "z.png"):
        records.write_text(entry / name, name)
    return entry


def test_who_waited_for_an_entry_that_was_deleted_has_the_new_one_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The kernel wakes the one that waits with a lock on a file that has no name any more."""
    flock, before = fcntl.flock, ExitStack()
    before.enter_context(store.sole_use(folder))

    def waiting(handle: Any, how: int) -> None:
        if how == fcntl.LOCK_EX:
            before.close()
            store.keep_newest("kind", 0)
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", waiting)
    with store.sole_use(folder, wait=True) as lock:
        assert capsys.readouterr().out.startswith("waiting for another process")
        assert os.path.samestat(os.fstat(lock), (folder / store.LOCK).stat())
        assert [path.name for path in folder.iterdir()] == [store.LOCK]
        with pytest.raises(DataError, match="another process is at work in"), store.sole_use(folder):
            pass


def test_an_entry_is_held_until_nothing_but_its_lock_is_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes while files are deleted would otherwise find some of them, and lose what it writes beside them."""
    left: list[set[str]] = []
    unlink = os.unlink

    def noted(path: Any, **options: Any) -> None:
        if Path(path).name == store.LOCK:
            left.append({found.name for found in folder.iterdir()})
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", noted)
    store.keep_newest("kind", 0)
    assert left == [{store.LOCK}] and not folder.exists()


def test_an_entry_that_is_gone_is_made_for_who_waits_and_told_to_who_does_not(folder: Path) -> None:
    store.keep_newest("kind", 0)
    with pytest.raises(DataError, match="another process has deleted"), store.sole_use(folder):
        pass
    assert not folder.exists()
    with store.sole_use(folder, wait=True):
        assert folder.is_dir()


def test_an_entry_may_be_deleted_while_it_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    utime = os.utime

    def deleted_before(path: Path) -> None:
        store.keep_newest("kind", 0)
        utime(path)

    monkeypatch.setattr(os, "utime", deleted_before)
    with store.sole_use(store.entry("kind", "key"), wait=True):
        assert [path.name for path in folder.iterdir()] == [store.LOCK]


@pytest.mark.parametrize("itself", [True, False])
def test_an_entry_may_be_deleted_while_all_are_listed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, itself: bool
) -> None:
    both = [folder, store.entry("kind", "other")]
    looked, stat = [], Path.stat

    def deleted_after(self: Path, **options: Any) -> os.stat_result:
        found = stat(self, **options)
        if self in both and not looked:
            looked.append(self)
            shutil.rmtree(self if itself else next(entry for entry in both if entry != self))
        return found

    monkeypatch.setattr(Path, "stat", deleted_after)
    found = store.entries("kind")
    assert len(looked) == 1 and set(found) == ({*both} if itself else {*looked})


def test_what_is_in_use_stays(folder: Path) -> None:
    with store.sole_use(folder):
        store.keep_newest("kind", 0)
        assert (folder / "state/1").exists()
    store.entry("kind", "newer")
    store.keep_newest("kind", 1)
    assert [entry.name for entry in store.entries("kind")] == ["newer"]


def test_what_waits_to_be_gone_on_with_is_no_part_of_the_count(folder: Path) -> None:
    for name in ("one", "two"):
        records.write_text(store.entry("kind", name) / "done", "")
    store.keep_newest("kind", 1, "done")
    assert {entry.name for entry in store.entries("kind")} == {"key", "two"}
    os.utime(folder, (0, 0))
    store.keep_newest("kind", 1, "done")
    assert [entry.name for entry in store.entries("kind")] == ["two"], "but not for ever"
