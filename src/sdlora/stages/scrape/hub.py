"""A Hugging Face image dataset with captions: from the hub, its cache, or a copy in a folder.

A hub dataset is downloaded whole at one commit, and that commit goes into the manifest. Pictures are taken as the bytes
that are stored, never decoded here: `datasets` would stop at the first broken one. No code of a dataset is run. Two
columns are read: any other could hold pictures that `datasets` would decode with whatever Pillow knows, or fetch.
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdlora.config.sources import HubSource
from sdlora.errors import DataError, MissingError, SdloraError, one_line, printable
from sdlora.stages.scrape import hub_files
from sdlora.stages.scrape.source import Candidate, ScrapeContext

CAPTION_COLUMNS = ("text", "caption", "captions", "prompt", "description")
NOT_DATA = ["*.py", "*.safetensors", "*.bin", "*.pt", "*.ckpt"]
FORMATS = ("parquet", "arrow", "csv", "json", "imagefolder", "webdataset")  # of the many that `datasets` would try


def find(source: HubSource, context: ScrapeContext) -> Iterator[Candidate]:
    """Every row of a dataset, in its order; a row without a picture has empty bytes, for `gather` to reject.

    Raises:
        DataError: If there is no such dataset, split or column, or a file of it is damaged.
        MissingError: If the hub cannot be reached and there is no copy.
    """
    folder, revision = _download(source) if source.local is None else (Path(source.local), source.revision)
    if not folder.is_dir():
        raise DataError(f"local: there is no folder {source.local!r} with a copy of {source.repository}")
    licence = _licence(hub_files.check(folder))
    with tempfile.TemporaryDirectory() as cache, _told(source, folder):
        rows = _open(source, folder, cache)
        image, caption = _columns(source, rows)
        for rank, row in enumerate(_undecoded(rows, image, caption)):
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
    if source.revision != folder.name:
        print(
            f"note: {what} is commit {folder.name} today and can move; manifest.jsonl has the commit, and "
            f"`revision: {folder.name}` gives others the same pictures",
            file=sys.stderr,
        )
    return folder, folder.name


def _open(source: HubSource, folder: Path, cache: str) -> Any:
    """The rows of the split, as `datasets` reads them; nothing is copied."""
    import datasets

    if (folder / "state.json").exists():
        return datasets.load_from_disk(str(folder)).with_format(None)
    if (folder / "dataset_dict.json").exists():
        splits = datasets.load_from_disk(str(folder))
        if source.split not in splits:
            raise DataError(f"{folder}: there is no split {source.split!r}; choices: {', '.join(splits)}")
        return splits[source.split].with_format(None)
    builder = datasets.load_dataset_builder(str(folder), cache_dir=cache)
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in FORMATS:
        raise DataError(f"{folder} holds a dataset of the kind {kind!r}; the kinds read are {', '.join(FORMATS)}")
    files = builder.config.data_files or {}
    hub_files.check_data_files((file for split in files.values() for file in split), folder)
    return builder.as_streaming_dataset(split=source.split)


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
        texts = (name for name in CAPTION_COLUMNS if name in features and _holds_words(features[name]))
        return pictures[0], next(texts, None)
    if source.caption_column not in features:
        raise DataError(f"{source.repository}: there is no caption_column {source.caption_column!r}; {have}")
    if not _holds_words(features[source.caption_column]):
        raise DataError(f"{source.repository}: caption_column {source.caption_column!r} does not hold text")
    return pictures[0], source.caption_column


def _holds_pictures(feature: Any) -> bool:
    """Whether a column has a picture in each row, as `datasets` or another tool wrote it."""
    import datasets

    if isinstance(feature, dict):  # a parquet file that another tool wrote
        return {"bytes", "path"} <= set(feature) and all(isinstance(part, datasets.Value) for part in feature.values())
    return isinstance(feature, datasets.Image) or _is_value(feature, "binary", "large_binary")


def _holds_words(feature: Any) -> bool:
    """Whether a column has a text, or several, in each row."""
    inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", feature)
    return _is_value(inner, "string", "large_string")


def _is_value(feature: Any, *kinds: str) -> bool:
    import datasets

    return isinstance(feature, datasets.Value) and feature.dtype in kinds


def _undecoded(rows: Any, image: str, caption: str | None) -> Iterator[dict[str, Any]]:
    """The rows of the two columns, with the picture as stored.

    The others are dropped before anything is asked of a row: only this column's type is changed, and a second picture
    would be decoded, or fetched from where its row says.
    """
    import datasets

    rows = rows.select_columns([image, caption] if caption else [image])
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
    if not isinstance(path, str) or "://" in path or "\0" in path:
        return b""
    place = folder / path
    return place.read_bytes() if hub_files.is_inside(place, folder) and place.is_file() else b""


def _text(value: Any) -> str | None:
    """A caption; of several, the first."""
    if isinstance(value, list | tuple):
        value = next(iter(value), None)
    return one_line(value) or None if isinstance(value, str) else None


def _licence(card: dict[str, Any]) -> str | None:
    """The licence that the dataset's card names."""
    found = card.get("license")
    names = found if isinstance(found, list) else [found] if found else []
    return printable(", ".join(str(name)[:200] for name in names[:20] if isinstance(name, str | int | float))) or None


@contextmanager
def _told(source: HubSource, folder: Path) -> Iterator[None]:
    """What goes wrong in `datasets` or Arrow, as an error that says where.

    They read what a stranger wrote, and break in ways that have nothing in common.
    """
    try:
        yield
    except SdloraError:
        raise
    except Exception as error:
        raise DataError(f"{source.repository} in {folder} cannot be read: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
