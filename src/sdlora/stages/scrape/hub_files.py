"""What the files of a stranger's dataset may say, checked before `datasets` reads them.

A card names data files by patterns, a saved dataset names its tables: `datasets` follows both to any place, a URL
included, also offline. So every name is read here first, and a dataset that names anything but files of its own folder
is refused. YAML and JSON are measured before they are built: aliases multiply, and nesting ends the interpreter.
"""

import os
import re
from collections.abc import Iterable, Iterator
from os.path import normpath
from pathlib import Path
from typing import Any

import yaml

from sdlora import records
from sdlora.errors import DataError

CARD, STANDALONE = "README.md", ".huggingface.yaml"
STATES = ("state.json", "dataset_dict.json", "dataset_info.json", "dataset_infos.json")
MAX_TEXT_MIB = 16  # of a card or a state; the longest on the hub are below 2
MAX_NODES = 200_000  # of a card's YAML with its aliases written out
MAX_DEPTH = 40
_PATTERNS = ("data_files", "data_dir", "path", "filename")  # keys whose text is a place
_BLOCK = re.compile(r"^(\s*---(?:\r\n|\r|\n))([\S\s]*?)((?:\r\n|\r|\n)---[ \t]*(\r\n|\n|$))")  # as the hub reads it


def check(folder: Path) -> dict[str, Any]:
    """Read what a copy of a dataset says about itself.

    Args:
        folder: With the dataset's files.

    Returns:
        The card's fields.

    Raises:
        DataError: If a card or a state is no YAML or JSON, is a bomb, or names a place outside the folder.
    """
    card = _yaml(folder / CARD, in_block=True)
    for name, value in ((CARD, card), (STANDALONE, _yaml(folder / STANDALONE, in_block=False))):
        for pattern in _places(value):
            _check_pattern(pattern, folder / name)
    for path in (place for name in STATES for place in (folder / name, *sorted(folder.glob(f"*/{name}")))):
        _check_state(path, folder)
    return card


def _check_state(path: Path, folder: Path) -> None:
    text = _text(path)
    if text is None:
        return
    try:
        value = records.parse_json(text)
    except ValueError as error:
        raise DataError(f"{path} is no JSON that can be read: {error}") from None
    names = _places(value) if path.name == "state.json" else ()
    if path.name == "dataset_dict.json" and isinstance(value, dict):
        names = value.get("splits") or ()
    for name in names:
        _check_pattern(name, path)
        if not is_inside(path.parent / str(name), folder):
            raise DataError(f"{path} names {name!r}, which lies outside the dataset's folder")


def _check_pattern(pattern: Any, path: Path) -> None:
    """Refuse whatever could mean a file outside the dataset's folder."""
    text = str(pattern)
    bad = "://" in text or "::" in text or ".." in re.split(r"[/\\]", text)
    if not isinstance(pattern, str) or bad or text.startswith(("/", "\\", "~")) or re.match(r"[A-Za-z]:", text):
        raise DataError(
            f"{path} names the data file {text[:200]!r}; only files of the dataset's own folder are read: no absolute "
            f"path, no '..', no '://', no '::'"
        )


def _places(value: Any, key: str = "") -> Iterator[Any]:
    """Every text under a key that names files."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _places(inner, str(name) if name in _PATTERNS else key)
    elif isinstance(value, list):
        for inner in value:
            yield from _places(inner, key)
    elif key and value is not None:
        yield value


def is_inside(place: Path, folder: Path) -> bool:
    """Whether a file is one of the folder's, links followed (the hub's cache keeps a folder's files beside it)."""
    if not Path(normpath(place)).is_relative_to(normpath(folder)):
        return False
    real, home = Path(os.path.realpath(place)), Path(os.path.realpath(folder))
    cached = [home.parent.parent / "blobs"] if home.parent.name == "snapshots" else []
    return any(real.is_relative_to(root) for root in (home, *cached))


def check_data_files(data_files: Iterable[str], folder: Path) -> None:
    """Refuse resolved data files that lie elsewhere.

    Raises:
        DataError: If one does.
    """
    for file in data_files:
        if "://" in str(file) or not is_inside(Path(file), Path(os.path.realpath(folder))):
            raise DataError(f"{folder}: the data file {str(file)[:200]!r} lies outside the dataset's folder")


def _text(path: Path) -> str | None:
    """A small text file of the dataset, if it is there."""
    if not path.exists():
        return None
    if not path.is_file() or path.stat().st_size > MAX_TEXT_MIB * 2**20:
        raise DataError(f"{path} is no file of at most {MAX_TEXT_MIB} MiB")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from None


def _yaml(path: Path, in_block: bool) -> dict[str, Any]:
    """The fields of a card, or of the YAML file that stands for one."""
    text = _text(path)
    if text is not None and in_block:
        found = _BLOCK.search(text)
        text = found[2] if found else None
    if text is None:
        return {}
    try:
        _measure(text)
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise DataError(
            f"the YAML of {path} cannot be read: {' '.join(str(error).split())}; mend or delete it"
        ) from None
    return value if isinstance(value, dict) else {}


def _measure(text: str) -> None:
    """Count a YAML text's nodes as they would stand with every alias written out, without building them.

    Raises:
        ValueError: If there are too many, or they are nested too deeply.
    """
    sizes: dict[str, int] = {}  # by anchor
    stack: list[tuple[str | None, int]] = [(None, 0)]  # of what is open: anchor, nodes so far
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            stack.append((event.anchor, 1))
            if len(stack) > MAX_DEPTH:
                raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, nodes = stack.pop()
        elif isinstance(event, yaml.AliasEvent):
            anchor, nodes = None, sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.ScalarEvent):
            anchor, nodes = event.anchor, 1
        else:
            continue
        if anchor:
            sizes[anchor] = nodes
        stack[-1] = (stack[-1][0], stack[-1][1] + nodes)
        if stack[-1][1] > MAX_NODES:
            raise ValueError(f"with its aliases written out it has more than {MAX_NODES} values")
