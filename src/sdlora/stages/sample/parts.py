"""Which references choose a checkpoint, and which report what it is worth; who reads the pictures of both."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from sdlora import records

LEAST_REFERENCES = 5  # of a part; below, nothing is said of a difference
VALIDATION, TEST = "validation", "test"
#: Of each part, the folder of its pictures: all checkpoints', and those of the checkpoints that were chosen.
FOLDERS = {VALIDATION: "samples", TEST: "test_samples"}
INDEX = "index.jsonl"
UNTRIGGERED = "untriggered.jsonl"  # rows of the prompts without the trigger, as in the index
Item = TypeVar("Item")


def split(references: Sequence[Item], validation: float) -> tuple[list[Item], list[Item]]:
    """The references that choose, and those that report.

    Where either part would have fewer than 5, all choose and none reports.

    Args:
        references: In order of their ids, which are hashes of their content.
        validation: The share that chooses.
    """
    chosen_by = round(len(references) * validation)
    if min(chosen_by, len(references) - chosen_by) < LEAST_REFERENCES:
        return [*references], []
    return [*references[:chosen_by]], [*references[chosen_by:]]


def drawn(result: Path, part: str, index: str = INDEX) -> list[records.Row]:
    """The rows of one part's pictures; `file` lies below `results/<version>`."""
    folder = FOLDERS[part]
    return [
        {**row, "part": part, "file": f"{folder}/{row['file']}"} for row in records.read_jsonl(result / folder / index)
    ]


def all_drawn(result: Path, index: str = INDEX) -> list[records.Row]:
    """The rows of both parts: every checkpoint has pictures of the first, those that were chosen of the second."""
    return [row for part in FOLDERS for row in drawn(result, part, index)]


def reporting(result: Path, steps: Iterable[int]) -> list[records.Row]:
    """The rows that some steps are compared by: of the references that report where all are drawn, or that choose."""
    wanted, tested = {*steps}, drawn(result, TEST)
    rows = tested if wanted <= {row["step"] for row in tested} else drawn(result, VALIDATION)
    return [row for row in rows if row["step"] in wanted]
