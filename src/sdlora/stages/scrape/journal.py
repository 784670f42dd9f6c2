"""What has been fetched, written down at once: an interrupted run goes on instead of starting again.

While a run is at work the rows stand in `journal.part.jsonl`, one URL each, on the disk before the next step. When the
dataset is whole the file becomes `journal.jsonl`: the place where the times of the fetches are kept, because the
manifest holds nothing that differs between two fetches of the same set.
"""

import json
import os
import re
import threading
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sdlora import records
from sdlora.config.sources import Scrape
from sdlora.flow import hashing
from sdlora.stages.scrape.verify import Look

_LOOK = {field.name for field in fields(Look)}
# Limits under which a picture that was fetched would not have been: with others, everything is fetched again.
_DECISIVE = ("max_mib", "max_megapixels", "honour_opt_out")


class Journal:
    """Rows by URL; may be used by many threads."""

    def __init__(self, folder: Path, limits: Scrape) -> None:
        self._path, self._whole = folder / "journal.part.jsonl", folder / "journal.jsonl"
        self._lock, self._syncing = threading.Lock(), threading.Lock()
        self._written = self._synced = 0  # rows of this run
        self._stamp = {"limits": {key: getattr(limits, key) for key in _DECISIVE}}
        self._rows = self._read()

    def known(self, url: str) -> records.Row | None:
        """What is written about a URL, unless another attempt may end otherwise."""
        with self._lock:
            row = self._rows.get(url)
        return None if row is None or row.get("again") else row

    def add(self, url: str, **facts: Any) -> None:
        """Write a row; it is on the disk when this returns, one sync for all that came while the last was at work."""
        row = {"url": url, "time": datetime.now(UTC).isoformat(timespec="seconds"), **facts}
        with self._lock:
            if not self._path.exists():
                self._append(self._stamp)
            self._append(row)
            self._rows[url] = row
            self._written += 1
            mine = self._written
        with self._syncing:
            if self._synced < mine:
                with self._lock:
                    now = self._written
                with self._path.open("ab") as handle:
                    os.fsync(handle.fileno())
                self._synced = now

    def note_dropped(self, url: str) -> None:
        """The picture was rejected and its file is deleted; what is known of it stays known."""
        with self._lock:
            row = self._rows.get(url)
            if row is not None and not row.get("dropped"):
                self._rows[url] = {**row, "dropped": True}
                self._append(self._rows[url])

    def finish(self) -> None:
        """The dataset is whole: the next run is a new one."""
        if self._path.exists():
            self._path.replace(self._whole)
        else:
            self._whole.unlink(missing_ok=True)

    def _append(self, row: records.Row) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as handle:
            handle.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")

    def _read(self) -> dict[str, records.Row]:
        """The rows of an interrupted run; what the interruption tore is cut off."""
        if not self._path.exists():
            return {}
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        try:
            stamp, *rows = [records.parse_json(line) for line in whole.split(b"\n") if line]
        except ValueError:
            stamp, rows = None, []
        if stamp != self._stamp:
            self._path.unlink()
            return {}
        if whole != content:
            records.write_bytes(self._path, whole)
        return {row["url"]: row for row in rows if _is_whole(row)}


def _is_whole(row: Any) -> bool:
    """Whether a row says all that its verdict needs, and its hash is one: the journal may be somebody else's."""
    if not isinstance(row, dict) or not isinstance(row.get("url"), str):
        return False
    digest = row.get("sha256")
    if digest is not None and not (isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)):
        return False
    if row.get("verdict") == "refused":
        return isinstance(row.get("kind"), str) and isinstance(row.get("reason"), str)
    look = row.get("look")
    if digest is None or not isinstance(look, dict) or set(look) != _LOOK or not isinstance(row.get("size_bytes"), int):
        return False
    marks = re.fullmatch("[0-9a-f]{32} [0-9a-f]{384}", f"{look['dhash']} {look['colours']}")
    sides = isinstance(look["width_px"], int) and isinstance(look["height_px"], int)
    return bool(marks) and sides and re.fullmatch("[A-Z]+", str(look["format"])) is not None


def is_intact(path: Path, sha256: str) -> bool:
    """Whether a picture the journal names is there and unchanged."""
    return path.is_file() and hashing.sha256_of(path) == sha256
