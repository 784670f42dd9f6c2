"""Files and folders that are written whole or not at all."""

import json
import os
from pathlib import Path

import pytest
from power_cut import synced_inodes

from sdlora import records


def test_publishing_replaces_the_folder_and_clears_what_a_killed_process_left(tmp_path: Path) -> None:
    for name in ("new", "old", "old.123.part"):
        records.write_text(tmp_path / name / name, name)
    records.publish_folder(tmp_path / "new", tmp_path / "old")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "old"]
    assert [p.name for p in (tmp_path / "old").iterdir()] == ["new"]


def test_writes_are_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records.write_text(tmp_path / "x", "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        records.write_text(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_many_files_are_on_the_disk_where_their_block_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records.write_text(tmp_path / "1", "old")
    paths, synced = [tmp_path / str(number) for number in range(40)], synced_inodes(monkeypatch)
    with records.many_files() as write:
        for path in paths:
            write(path, path.name.encode())
        assert not synced, "none waits by itself"
        assert [path.read_text() for path in paths] == [path.name for path in paths]
    assert synced == {path.stat().st_ino for path in paths}
    assert sorted(tmp_path.iterdir()) == sorted(paths), "no part is left"


def test_a_disk_that_does_not_take_one_of_many_files_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as error, records.many_files() as write:
        write(tmp_path / "x", b"new")
    assert error.value.filename == str(tmp_path / "x")


@pytest.mark.parametrize("text", ["[" * 300 + "]" * 300, '{"a": ' * 300 + "1" + "}" * 300, "[" * 100_000])
def test_json_that_a_function_could_not_walk_is_none(text: str) -> None:
    """Whatever Python's parser would have followed: 3.11's nearly 1,000 levels, 3.13's more than 5,000."""
    for one in (text, text.encode()):
        with pytest.raises(ValueError, match=r"nested too deeply"):
            records.parse_json(one)


def test_json_may_have_many_brackets() -> None:
    for value in ([[1], {"a": 2}] * 300, "[" * 300, {"a": "{" * 300}):
        assert records.parse_json(json.dumps(value)) == value
