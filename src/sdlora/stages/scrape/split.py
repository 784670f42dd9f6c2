"""Which pictures are references: chosen once, then kept, and never a copy of what is learnt from."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from sdlora import records
from sdlora.errors import DataError, suggest
from sdlora.records import Row
from sdlora.stages.scrape.looks import Looks
from sdlora.stages.scrape.verify import Look

CHOSEN = "references.json"  # ids in the order in which they were chosen; no output, so Snakemake never deletes it


def mark_copies(rows: list[Row], looks: Mapping[str, Look], bits: int) -> list[Row]:
    """Add `copy_of` to each picture that shows what an earlier row shows: the id of the first of their group.

    Of three in a row the first and the last need not look alike: who looks like both makes them one group.

    Args:
        rows: Accepted pictures.
        looks: What is known of each, by id.
        bits: As `scrape.duplicate_bits`; -1 finds none.
    """
    seen, first = Looks(), list(range(len(rows)))

    def first_of(place: int) -> int:
        while first[place] != place:
            place = first[place]
        return place

    for index, row in enumerate(rows):
        groups = {index, *map(first_of, seen.same_as(looks[row["id"]], bits))}
        for group in groups:
            first[group] = min(groups)
        seen.append(looks[row["id"]])
    firsts = [first_of(place) for place in range(len(rows))]
    return [row if firsts[n] == n else {**row, "copy_of": rows[firsts[n]]["id"]} for n, row in enumerate(rows)]


def split(rows: Sequence[Row], held_out: int | str, out: Path) -> tuple[list[Row], list[Row]]:
    """Mark references: a subfolder's pictures, or as many as asked for.

    A number is chosen by content hash, pictures without copies before others, and remembered in
    `references.json`: pictures that come later change nothing. Copies of one picture are never on both sides.

    Args:
        rows: Accepted pictures, by id.
        held_out: A subfolder's path inside its source, or how many.
        out: The dataset's folder, where the choice is remembered.

    Returns:
        The rows with `split`, and those left out because they are copies of references.

    Raises:
        DataError: If the subfolder holds no accepted picture, or if there are too few pictures.
    """
    if isinstance(held_out, str):
        references = _in_folder(rows, held_out)
        left_out: set[str] = set()
    else:
        references = _chosen(rows, held_out, out / CHOSEN) if held_out else set()
        groups = {group_of(row) for row in rows if row["id"] in references}
        left_out = {row["id"] for row in rows if group_of(row) in groups} - references
    kept = [row for row in rows if row["id"] not in left_out]
    marked = [{**row, "split": "reference" if row["id"] in references else "train"} for row in kept]
    return marked, [row for row in rows if row["id"] in left_out]


def group_of(row: Row) -> str:
    """The id of the first picture that shows what a row shows."""
    return str(row.get("copy_of", row["id"]))


def lies_in(row: Row, folder: str) -> bool:
    """Whether a picture lies in a subfolder of its source, or below."""
    wanted = PurePosixPath(folder).parts
    return PurePosixPath(str(row["name"])).parts[:-1][: len(wanted)] == wanted


def _in_folder(rows: Sequence[Row], folder: str) -> set[str]:
    found = {row["id"] for row in rows if lies_in(row, folder)}
    if not found:
        parents = {str(p) for row in rows for p in PurePosixPath(str(row["name"])).parents if str(p) != "."}
        number = f"; write {folder} without quotes for a number of pictures" if folder.isdecimal() else ""
        there = number or suggest(folder, parents) or "; there are no subfolders"
        raise DataError(f"held_out names the subfolder {folder!r}, but no accepted picture lies in it{there}")
    if len(found) == len(rows):
        raise DataError(f"held_out names {folder!r}, which holds all {len(rows)} pictures: none is left to learn from")
    return found


def _chosen(rows: Sequence[Row], count: int, memory: Path) -> set[str]:
    """As many references as asked for: those of before, then others by id, groups of copies whole and last."""
    if count >= len(rows):
        raise DataError(f"held_out is {count}, but there are {len(rows)} pictures: none is left to learn from")
    groups: dict[str, list[str]] = {}
    for row in rows:
        groups.setdefault(group_of(row), []).append(row["id"])
    there = {row["id"] for row in rows}
    before = [name for name in _remembered(memory) if isinstance(name, str)]
    chosen = [name for name in before if name in there][:count]
    for members in sorted(groups.values(), key=lambda members: len(members) > 1):
        if len(chosen) + len(members) <= count and not set(members) & set(chosen):
            chosen += members
    if len(chosen) < count:
        raise DataError(
            f"held_out is {count}, but only {len(chosen)} pictures can be references: the others are copies of one "
            f"another, and a picture that is learnt from cannot measure; lower held_out, or name a subfolder"
        )
    records.write_json(memory, [*before, *(name for name in chosen if name not in before)])
    return set(chosen)


def _remembered(memory: Path) -> list[object]:
    if not memory.exists():
        return []
    try:
        found = records.read_json(memory)
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise DataError(
            f"{memory} is damaged; bring it back with `dvc checkout data/sets`, or delete it to choose anew"
        )
    return found
