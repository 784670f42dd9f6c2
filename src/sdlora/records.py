"""Every file format the stages share, and atomic writes: the only file-format code."""

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

Row = dict[str, Any]
Write = Callable[[Path, bytes], None]
MOST_NESTED = 200  # levels of JSON; Python 3.12's parser follows more than a function that calls itself can
SYNCED_AT_ONCE = 16  # files, which share the commits of a journal; measured, 4 to 64 take the same time


def write_bytes(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write a file, or pieces one after the other, so that a crash leaves either the old one or the whole new one."""
    with _replacing(path) as part:
        _put(part, (content,) if isinstance(content, bytes) else content)


@contextmanager
def many_files() -> Iterator[Write]:
    """Write many files as `write_bytes` does, but have them on the disk, all at once, only where the block ends.

    Until then a power cut may leave a file of that name without its content. So this is for files that nobody takes for
    whole before a record, which is written later, says so.
    """
    written: dict[Path, None] = {}

    def write(path: Path, content: bytes) -> None:
        with _replacing(path) as part:
            part.write_bytes(content)
        written[path] = None

    yield write
    with ThreadPoolExecutor(SYNCED_AT_ONCE) as pool:
        for _ in pool.map(_sync, written):
            pass


def part_of(path: Path) -> Path:
    """A name beside a file or folder for what is to take its place; no other process has it, on no other machine."""
    return path.with_name(f"{path.name}.{uuid4().hex[:12]}.part")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file to write that then takes another's place; an error names the latter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        with _named(path):
            yield part
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Have an error of the disk name a file: a write has no name of its own."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_pieces(path: Path, content: Iterable[bytes]) -> str:
    """Write a file of a `new_folder` to the disk.

    Returns:
        Its sha256 in hex.
    """
    digest = hashlib.sha256()

    def hashed() -> Iterator[bytes]:
        for piece in content:
            digest.update(piece)
            yield piece

    _put(path, hashed())
    return digest.hexdigest()


def _put(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file to the disk."""
    with path.open("wb") as handle:
        for piece in pieces:
            handle.write(piece)
        handle.flush()
        os.fsync(handle.fileno())


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill that becomes `target` when all is written: whole or not at all, also after a power cut."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(".*.part"):  # of a process that was killed
        shutil.rmtree(left)
    hidden = target.with_name(f".{target.name}")
    part, old = part_of(hidden), part_of(hidden)
    part.mkdir()
    try:
        yield part
        _sync(part, os.O_RDONLY)
        if target.exists():
            target.replace(old)
        part.replace(target)
        _sync(target.parent, os.O_RDONLY)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path, flags: int = os.O_WRONLY) -> None:
    """Have on the disk what was written to a file, or to a folder, which is opened to read."""
    with _named(path):
        handle = os.open(path, flags)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, content.encode("utf-8"))


def canonical_json(value: Any) -> str:
    """One spelling per value: sorted keys, no spaces to vary."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def compact_json(value: Any) -> str:
    """One spelling per value, on one line: ten times as fast as the readable one."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write canonical JSON atomically."""
    write_text(path, canonical_json(value))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: If it is not JSON, or nested more than `MOST_NESTED` deep.
    """
    return parse_json(path.read_text("utf-8"))


def read_config(path: Path) -> Row | None:
    """A model's JSON config; None where there is none, or it is damaged: whoever loads it says so."""
    with suppress(OSError, ValueError):
        found = read_json(path)
        return found if isinstance(found, dict) else None
    return None


def parse_json(text: str | bytes) -> Any:
    """Parse JSON that somebody else may have written.

    Raises:
        ValueError: If it is none, or is nested more than `MOST_NESTED` deep.
    """
    with suppress(RecursionError):
        value = json.loads(text)
        brackets = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
        if brackets <= MOST_NESTED or not _is_deep(value):
            return value
    raise ValueError("nested too deeply")


def _is_deep(value: Any) -> bool:
    """Whether a value is nested so deeply that a function that calls itself may not come to its end."""
    level = [value]
    for _ in range(MOST_NESTED):
        inside = (one.values() if isinstance(one, dict) else one for one in level)
        level = [inner for values in inside for inner in values if isinstance(inner, dict | list)]
        if not level:
            return False
    return True


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[Row]:
    """Read one JSON object a line; a missing file has no rows.

    Lines end at a line feed alone: `str.splitlines` would also cut a title at U+0085, U+2028 or U+2029.
    """
    if not path.exists():
        return []
    return [parse_json(line) for line in path.read_text("utf-8").split("\n") if line.strip()]


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV table with a header, atomically."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a CSV table with a header."""
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; a bar in a cell stays in it."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def publish_folder(source: Path, target: Path) -> None:
    """Make `target` a copy of `source`, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part, old = part_of(target), part_of(target)
    for left in target.parent.glob(f"{target.name}.*.part"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(source, part)
    if target.exists():
        target.replace(old)
    part.replace(target)
    shutil.rmtree(old, ignore_errors=True)
