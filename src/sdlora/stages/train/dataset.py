"""What can be drawn: pictures with their latents, captions and geometry, and in which order."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from sdlora import records
from sdlora.errors import DataError
from sdlora.images import masks
from sdlora.randomness import generator, uniform
from sdlora.stages.encode import shards
from sdlora.stages.encode.encode import INDEX, latents_folder
from sdlora.stages.encode.shards import Latents


@dataclass(frozen=True)
class Geometry:
    """Sizes of one orientation of a picture, px."""

    size: tuple[int, int]  # width, height of the fitted picture: its bucket
    box: tuple[int, int, int, int]  # left, top, width, height of the picture inside it
    original: tuple[int, int]  # width, height before fitting
    corner: tuple[int, int]  # left, top that a crop cut off the scaled picture; 0, 0 where nothing was


@dataclass(frozen=True)
class Example:
    """One picture; each tuple has one entry an orientation: as it is, mirrored."""

    id: str
    mean: tuple[Tensor, ...]  # of the latents' posterior, (C, h, w); empty where latents are not cached
    std: tuple[Tensor, ...]  # its deviation, (C, h, w)
    text: tuple[str, ...]
    mask: tuple[Tensor | None, ...] = ()  # (1, h, w), weights of the loss; empty or None: all of it is learnt
    geometry: tuple[Geometry, ...] = ()
    files: tuple[Path, ...] = ()  # the fitted pictures
    mask_files: tuple[Path | None, ...] = ()  # a user's masks, fitted
    repeats: int = 1  # draws per epoch

    @property
    def bucket(self) -> tuple[int, ...]:
        """What pictures of one batch have in common: their size, or for latents from elsewhere their shape."""
        return self.geometry[0].size if self.geometry else tuple(self.mean[0].shape)


def load_examples(folder: Path, base_name: str, cache_latents: str = "disk") -> list[Example]:
    """Read `train/metadata.jsonl` and, where they are cached on disk, map the latents of a base.

    Raises:
        DataError: If a shard of latents is damaged or the set is empty.
    """
    rows = {(r["id"], r["mirrored"]): r for r in records.read_jsonl(folder / "train" / "metadata.jsonl")}
    if not rows:
        raise DataError(f"{folder}: no pictures to learn from")
    latents = _cached_latents(latents_folder(folder, base_name)) if cache_latents == "disk" else {}
    examples = []
    for picture in sorted({key[0] for key in rows}):
        sides = [rows[picture, side] for side in (False, True) if (picture, side) in rows]
        loaded = [latents[picture, row["mirrored"]] for row in sides] if latents else []
        mask_files = [folder / masks.TRAIN_FOLDER / row["file_name"] for row in sides]
        examples.append(
            Example(
                picture,
                tuple(mean for mean, _ in loaded),
                tuple(std for _, std in loaded),
                tuple(row["text"] for row in sides),
                geometry=tuple(_geometry(row) for row in sides),
                files=tuple(folder / "train" / row["file_name"] for row in sides),
                mask_files=tuple(path if path.exists() else None for path in mask_files),
                repeats=sides[0]["repeats"],
            )
        )
    return examples


def _cached_latents(folder: Path) -> dict[tuple[str, bool], Latents]:
    rows = records.read_jsonl(folder / INDEX)
    if not rows:
        raise DataError(f"{folder}: no latents to learn from")
    if any("key" not in row for row in rows):
        raise DataError(f"{folder / INDEX}: written before latents were in shards; delete {folder} and run again")
    found = {name: shards.read(folder / name) for name in sorted({row["file"] for row in rows})}
    try:
        return {(row["id"], row["mirrored"]): found[row["file"]][row["key"]] for row in rows}
    except KeyError as error:
        raise DataError(f"{folder / INDEX}: damaged: no shard has {error.args[0]}") from None


def _geometry(row: records.Row) -> Geometry:
    return Geometry(tuple(row["bucket"]), tuple(row["box"]), tuple(row["original"]), tuple(row["corner"]))


@lru_cache(maxsize=64)
def _epoch_order(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    return tuple(torch.randperm(count, generator=generator("order", seed, epoch)).tolist())


def chosen(seed: int, draw: int, count: int) -> int:
    """Which of `count` entries draw number `draw` takes: every epoch takes each once, shuffled."""
    epoch, place = divmod(draw, count)
    return _epoch_order(seed, epoch, count)[place]


def orientation(example: Example, probability: float, seed: int, draw: int) -> int:
    """0 as it is, 1 mirrored; decided by (seed, draw, id)."""
    if len(example.text) == 1:
        return 0
    return int(uniform("flip", seed, draw, example.id) < probability)


@dataclass(frozen=True)
class BatchOrder:
    """Which pictures batch number `n` holds: a function of (seed, n), and always of one bucket.

    Each bucket is an endless stream of draws, shuffled epoch by epoch, each picture as often as its
    `repeats` say; a batch is the next `batch_size` draws of one stream. What an epoch leaves over of a
    bucket is carried into the next one, so every batch is full, every picture is drawn equally often,
    and none weighs more for lying in a small bucket. Which bucket comes next is shuffled within the epoch.
    With one bucket, batches are simply the stream cut into pieces.
    """

    seed: int
    batch_size: int
    streams: tuple[tuple[int, ...], ...]  # a bucket's entries: places in the list of examples

    @classmethod
    def of(cls, examples: Sequence[Example], seed: int, batch_size: int) -> "BatchOrder":
        """The order of a list of examples."""
        streams: dict[tuple[int, ...], list[int]] = {}
        for place, example in enumerate(examples):
            streams.setdefault(example.bucket, []).extend([place] * example.repeats)
        return cls(seed, batch_size, tuple(tuple(streams[bucket]) for bucket in sorted(streams)))

    def draws(self, number: int) -> list[tuple[int, int]]:
        """(draw, place in the list of examples) of each sample of a batch; a draw's number is unique in its bucket."""
        bucket, nth = self._batch(number)
        stream = self.streams[bucket]
        first = nth * self.batch_size
        return [(n, stream[chosen(self.seed, n, len(stream))]) for n in range(first, first + self.batch_size)]

    def _batch(self, number: int) -> tuple[int, int]:
        """(bucket, which batch of that bucket)."""
        if len(self.streams) == 1:
            return 0, number
        counts = tuple(map(len, self.streams))
        # an epoch makes at least sum(counts) / batch_size batches, less what lies over in each bucket
        last = (number + len(counts)) * self.batch_size // sum(counts) + 1
        epoch = bisect_right(range(last + 1), number, key=lambda e: sum(_before(e, counts, self.batch_size))) - 1
        labels, before = _labels(self.seed, epoch, counts, self.batch_size), _before(epoch, counts, self.batch_size)
        place = number - sum(before)
        bucket = labels[place]
        return bucket, before[bucket] + labels[:place].count(bucket)


def _before(epoch: int, counts: tuple[int, ...], batch_size: int) -> list[int]:
    """Batches that each bucket has made before an epoch."""
    return [epoch * count // batch_size for count in counts]


@lru_cache(maxsize=4)
def _labels(seed: int, epoch: int, counts: tuple[int, ...], batch_size: int) -> tuple[int, ...]:
    """The bucket of each batch of an epoch, in order."""
    before, after = _before(epoch, counts, batch_size), _before(epoch + 1, counts, batch_size)
    labels = [bucket for bucket in range(len(counts)) for _ in range(after[bucket] - before[bucket])]
    order = torch.randperm(len(labels), generator=generator("buckets", seed, epoch)).tolist()
    return tuple(labels[place] for place in order)
