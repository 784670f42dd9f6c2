"""`manifest.jsonl` and `pin.json` rows on reading: they may have come with somebody else's dataset.

A row's `id` and `file` become paths, so they must be what `gather` writes and nothing that leads elsewhere.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdlora import records
from sdlora.errors import DataError

ID = re.compile(r"[0-9a-f]{16}")
FILE = re.compile(r"[0-9a-f]{64}\.[a-z]+")
_AGAIN = "do not use this dataset unless you know who wrote it; bring yours back with `dvc checkout data/sets`"
_FORMS = {"id": (ID, "16 hexadecimal digits"), "file": (FILE, "64 hexadecimal digits, a dot and a format")}


def read(folder: Path) -> list[records.Row]:
    """The accepted pictures of a dataset.

    Raises:
        DataError: If the file is damaged, or a row's id or file is not what a scrape writes.
    """
    path = folder / "manifest.jsonl"
    try:
        rows = records.read_jsonl(path)
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}; {_AGAIN}") from None
    return check(rows, path)


def check(rows: Sequence[Any], path: Path) -> list[records.Row]:
    """The rows, if their ids and files are names and not ways.

    Raises:
        DataError: If one is not.
    """
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path}: row {number} is no object; {_AGAIN}")
        for key, (form, words) in _FORMS.items():
            if not isinstance(row.get(key), str) or not form.fullmatch(row[key]):
                raise DataError(f"{path}: row {number}: {key} is {str(row.get(key))[:100]!r}, not {words}; {_AGAIN}")
    return list(rows)
