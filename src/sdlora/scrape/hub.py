"""A Hugging Face image dataset with captions: from the hub, its cache, or a copy in a folder.

A hub dataset is downloaded whole at one commit, and that commit goes into the manifest. Pictures are taken as the bytes
that are stored, never decoded here: `datasets` would stop at the first broken one. No code of a dataset is run.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os.path import normpath
from pathlib import Path
from typing import Any

from sdlora.errors import DataError, MissingError
from sdlora.scrape.source import Candidate, ScrapeContext
from sdlora.source_section import HubSource

CAPTION_COLUMNS = ("text", "caption", "captions", "prompt", "description")
NOT_DATA = ["*.py", "*.safetensors", "*.bin", "*.pt", "*.ckpt"]


def find(source: HubSource, context: ScrapeContext) -> Iterator[Candidate]:
    """Every row of a dataset, in its order; a row without a picture has empty bytes, for `gather` to reject.

    Raises:
        DataError: If there is no such dataset, split or column, or a file of it is damaged.
        MissingError: If the hub cannot be reached and there is no copy.
    """
    folder, revision = _download(source) if source.local is None else (Path(source.local), source.revision)
    if not folder.is_dir():
        raise DataError(f"local: there is no folder {source.local!r} with a copy of {source.repository}")
    licence = _licence(folder)
    with tempfile.TemporaryDirectory() as cache, _told(source, folder):
        rows = _open(source, folder, cache)
        image, caption = _columns(source, rows)
        for rank, row in enumerate(_undecoded(rows, image)):
            yield Candidate(
                engine="hub", rank=rank, content=_bytes(row.get(image), folder), name=f"{source.split}/{rank:06d}",
                query=source.repository, page_url=f"https://huggingface.co/datasets/{source.repository}",
                caption=_text(row.get(caption)) if caption else None, licence=licence, revision=revision,
            )  # fmt: skip


def _download(source: HubSource) -> tuple[Path, str]:
    """The dataset's files at one commit, downloaded or from the hub's cache, and that commit."""
    from huggingface_hub import errors, snapshot_download

    what = f"{source.repository} at {source.revision or 'main'}"
    try:
        folder = Path(
            snapshot_download(
                source.repository, repo_type="dataset", revision=source.revision, ignore_patterns=NOT_DATA
            )
        )
    except errors.GatedRepoError:
        raise MissingError(f"{what} is gated: accept its terms on its page, then say `hf auth login`") from None
    except errors.RevisionNotFoundError:
        raise DataError(f"{source.repository} has no revision {source.revision!r}") from None
    except errors.RepositoryNotFoundError:
        raise DataError(
            f"the hub has no dataset {source.repository!r}, or it is private: say `hf auth login` if it is yours"
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError) as error:
        raise MissingError(
            f"{what} is not in the hub's cache and the hub cannot be reached ({_first_line(error)}); connect and run "
            f"again, or get a copy with `hf download {source.repository} --repo-type dataset --local-dir FOLDER` "
            f"where there is a network and set local: FOLDER"
        ) from None
    return folder, folder.name


def _open(source: HubSource, folder: Path, cache: str) -> Any:
    """The rows of the split, as `datasets` reads them; nothing is copied."""
    import datasets

    if (folder / "state.json").exists():
        return datasets.load_from_disk(str(folder))
    if (folder / "dataset_dict.json").exists():
        splits = datasets.load_from_disk(str(folder))
        if source.split not in splits:
            raise DataError(f"{folder}: there is no split {source.split!r}; choices: {', '.join(splits)}")
        return splits[source.split]
    return datasets.load_dataset(str(folder), split=source.split, streaming=True, cache_dir=cache)


def _columns(source: HubSource, rows: Any) -> tuple[str, str | None]:
    """The names of the picture's and of the caption's column."""
    features = rows.features or {}
    pictures = [name for name, feature in features.items() if _holds_pictures(feature)]
    have = f"the columns are {', '.join(features) or 'unknown'}"
    if source.image_column is not None:
        pictures = [name for name in pictures if name == source.image_column]
    if len(pictures) != 1:
        asked = f"image_column {source.image_column!r} holds none" if source.image_column else f"found {pictures}"
        raise DataError(f"{source.repository}: one column with pictures is needed, {asked}; {have}")
    if source.caption_column is None:
        return pictures[0], next((name for name in CAPTION_COLUMNS if name in features), None)
    if source.caption_column not in features:
        raise DataError(f"{source.repository}: there is no caption_column {source.caption_column!r}; {have}")
    return pictures[0], source.caption_column


def _holds_pictures(feature: Any) -> bool:
    import datasets

    if isinstance(feature, dict):  # a parquet file that another tool wrote
        return {"bytes", "path"} <= set(feature)
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", None) in ("binary", "large_binary")


def _undecoded(rows: Any, image: str) -> Iterator[dict[str, Any]]:
    """The rows with the picture as stored."""
    import datasets

    if isinstance(rows.features[image], datasets.Image):
        rows = rows.cast_column(image, datasets.Image(decode=False))
    yield from rows


def _bytes(value: Any, folder: Path) -> bytes:
    """A picture's bytes; a path is only followed inside the dataset's folder."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, dict):
        return b""
    if value.get("bytes"):
        return bytes(value["bytes"])
    path = value.get("path")
    if not isinstance(path, str) or "://" in path:
        return b""
    place = Path(normpath(folder / path))
    if not place.is_relative_to(normpath(folder)) or not place.is_file():
        return b""
    return place.read_bytes()


def _text(value: Any) -> str | None:
    """A caption; of several, the first."""
    if isinstance(value, list | tuple):
        value = next(iter(value), None)
    text = " ".join(value.split()) if isinstance(value, str) else ""
    return text or None


def _licence(folder: Path) -> str | None:
    """The licence that the dataset's card names."""
    from huggingface_hub import DatasetCard

    try:
        found = DatasetCard.load(folder / "README.md").data.to_dict().get("license")
    except (OSError, ValueError):
        return None
    return ", ".join(map(str, found)) if isinstance(found, list) else str(found) if found else None


@contextmanager
def _told(source: HubSource, folder: Path) -> Iterator[None]:
    """What goes wrong in `datasets` or Arrow, as an error that says where."""
    import pyarrow
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (ValueError, KeyError, OSError, DatasetsError, pyarrow.ArrowException) as error:
        raise DataError(f"{source.repository} in {folder} cannot be read: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
