"""Pictures that already lie in a folder, and the captions that other trainers keep beside them."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from sdlora.config.sources import FolderSource
from sdlora.errors import DataError, one_line, printable
from sdlora.flow import folders
from sdlora.flow.folders import Found
from sdlora.flow.hashing import printable as as_text
from sdlora.stages.scrape import kinds
from sdlora.stages.scrape.source import PICTURE_SUFFIXES, Candidate, ScrapeContext

CAPTION_SUFFIXES = (".txt", ".caption")  # as kohya's scripts write them, the first one first
MAX_CAPTION = 65_536  # bytes
MAX_FILE_MIB = 1024
SAID = 5  # reasons for which files are left out


def find(source: FolderSource, context: ScrapeContext) -> Iterator[Candidate]:
    """Every file below the folder, in name order: pictures, and why the others are none.

    A text file with a picture's name is its caption. What is neither comes with its problem, for `gather` to record.

    Raises:
        DataError: If there is no such folder or it holds no file.
    """
    folder = Path(source.path)
    if not folder.is_dir():
        raise DataError(f"there is no folder {source.path!r}")
    found = folders.walk(folder)
    if all(one.is_hidden for one in found):
        raise DataError(f"the folder {source.path!r} holds no picture: there is no file in it")
    problems = {one.path: one.problem or _problem(one.path) for one in found}
    captions, refused = _captions(found, problems)
    problems |= refused
    used = {path for path, _ in captions.values()}
    _say(source.path, problems, captions, used)
    files = [one.path for one in found if one.path not in used]
    for rank, path in enumerate(files):
        name = as_text(path.relative_to(folder))
        problem = problems[path]
        content = b""
        if problem is None:
            content, problem = _read(path)
        caption = captions[path][1] if path in captions else None
        yield Candidate("folder", rank, content=content, name=name, caption=caption, problem=problem)


def _problem(path: Path) -> str | None:
    """What keeps a file from being a picture, as far as its first bytes tell."""
    try:
        if path.stat().st_size > MAX_FILE_MIB * 2**20:
            return f"more than {MAX_FILE_MIB} MiB"
        with path.open("rb") as handle:
            found = kinds.problem_of(handle.read(kinds.HEAD), path.name)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    # under a picture's name the decoder's own words say more
    return None if found and found.startswith("no ") and path.suffix.lower() in PICTURE_SUFFIXES else found


def _read(path: Path) -> tuple[bytes, str | None]:
    try:
        return path.read_bytes(), None
    except OSError as error:
        return b"", f"it cannot be read: {error.strerror}"


def _captions(
    found: list[Found], problems: Mapping[Path, str | None]
) -> tuple[dict[Path, tuple[Path, str]], dict[Path, str]]:
    """The captions by picture, each with its file, and what is wrong with the text files that are none."""
    texts = {one.path for one in found if one.path.suffix.lower() in CAPTION_SUFFIXES and not one.problem}
    by_name: dict[Path, list[Path]] = {}
    for path in sorted(texts, key=lambda path: CAPTION_SUFFIXES.index(path.suffix.lower())):
        by_name.setdefault(path.with_suffix(""), []).append(path)
    captions: dict[Path, tuple[Path, str]] = {}
    refused = dict.fromkeys(texts, "a text without a picture of its name")
    for picture in (one.path for one in found if problems[one.path] is None and one.path not in texts):
        for path in by_name.get(picture.with_suffix(""), []):
            if picture in captions:
                refused[path] = f"a second caption: {captions[picture][0].name} is used"
                continue
            text, refused[path] = _caption(path)
            if text:
                captions[picture] = (path, text)
    return captions, refused


def _caption(path: Path) -> tuple[str | None, str]:
    """A caption on one line, or None and what is wrong with it."""
    try:
        with path.open("rb") as handle:
            content = handle.read(MAX_CAPTION + 1)
        if len(content) > MAX_CAPTION:
            return None, f"a caption that is not used: more than {MAX_CAPTION} bytes"
        text = one_line(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return None, f"a caption that is not used: byte {error.object[error.start]:#04x} is not UTF-8; save it as UTF-8"
    except OSError as error:
        return None, f"a caption that is not used: it cannot be read: {error.strerror}"
    return text or None, "a caption that is not used: it is empty"


def _say(
    where: str, problems: Mapping[Path, str | None], captions: Mapping[Path, tuple[Path, str]], used: set[Path]
) -> None:
    """Tell at once what is left out: nobody reads `rejected.jsonl` who expects nothing there."""
    left = {path: problem for path, problem in problems.items() if problem and path not in used}
    pictures = sum(problem is None for problem in problems.values())
    print(
        f"scrape: folder {where!r}: {pictures} files to open, {len(captions)} of them with a caption beside", flush=True
    )
    shown = {path: problem for path, problem in left.items() if not path.name.startswith(".")}
    counts = Counter(str(problem) for problem in shown.values())
    # of equally many, what could be mended before what is no picture at all: a HEIC picture before Thumbs.db
    ranked = sorted(counts, key=lambda problem: (-counts[problem], problem.startswith("no picture")))
    for problem in ranked[:SAID]:
        example = next(path for path, text in shown.items() if text == problem)
        print(
            printable(f"scrape: folder {where!r}: {counts[problem]} left out, {as_text(example)} for one: {problem}"),
            flush=True,
        )
    if others := sum(counts[problem] for problem in ranked[SAID:]):
        print(f"scrape: folder {where!r}: {others} more left out; rejected.jsonl says why", flush=True)
