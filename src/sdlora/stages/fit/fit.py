"""Fit pictures to a square or to a bucket: pad without losing a pixel's worth of the scene, or crop the centre."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from sdlora import records
from sdlora.config.params import Fit
from sdlora.errors import DataError, printable
from sdlora.flow import hashing, store
from sdlora.images import masks
from sdlora.images.pictures import open_picture, png_bytes, to_rgb
from sdlora.progress import Progress
from sdlora.stages.scrape import manifest

Box = tuple[int, int, int, int]
Size = tuple[int, int]  # width, height, px
GEOMETRY = ("box", "bucket", "original", "corner")  # what fit.jsonl says of each picture, in this order
PICTURES = "pictures"  # folder of the fitted pictures
KIND = "fitted"  # what they are called in the store
KEPT = "kept.json"  # which pictures lie fitted, and by what
LANCZOS, BILINEAR = Image.Resampling.LANCZOS, Image.Resampling.BILINEAR


def place(picture: Image.Image, size: Size, fill: str, resample: Image.Resampling = LANCZOS) -> tuple[Image.Image, Box]:
    """Scale a picture until it just fits into `size`, centre it and fill the rest.

    Args:
        picture: RGB, or L for a mask.
        size: Width and height to reach, px.
        fill: `edge` repeats the border pixels, `blur` repeats and blurs them, `#rrggbb` is a colour.
        resample: Filter of the scaling.

    Returns:
        The filled picture and (left, top, width, height) of the given one inside it.
    """
    inner = ImageOps.contain(picture, size, resample)
    if 0 in inner.size:  # of a very long picture nothing was left
        inner = picture.resize((max(1, inner.width), max(1, inner.height)), resample)
    left, top = (size[0] - inner.width) // 2, (size[1] - inner.height) // 2
    if fill in ("edge", "blur"):
        right, bottom = size[0] - inner.width - left, size[1] - inner.height - top
        whole = Image.fromarray(np.pad(np.asarray(inner), ((top, bottom), (left, right), (0, 0)), mode="edge"))
        if fill == "blur":
            whole = whole.filter(ImageFilter.GaussianBlur(max(size) / 32))
    else:
        whole = Image.new(picture.mode, size, fill)
    whole.paste(inner, (left, top))
    return whole, (left, top, inner.width, inner.height)


def pad(picture: Image.Image, size_px: int, fill: str) -> tuple[Image.Image, Box]:
    """Scale the longer side to `size_px` and fill the rest of the square: `place` in a square."""
    return place(picture, (size_px, size_px), fill)


def center_crop(
    picture: Image.Image, size_px: int, fill: str, resample: Image.Resampling = LANCZOS
) -> tuple[Image.Image, Box]:
    """Scale the shorter side to `size_px` and cut the longer one off evenly; `fill` is not needed."""
    return ImageOps.fit(picture, (size_px, size_px), resample), (0, 0, size_px, size_px)


def buckets(size_px: int, step_px: int, max_aspect: float) -> list[Size]:
    """Sizes of nearly the same area, `size_px` squared or a little less.

    For each width that is a multiple of `step_px`, the largest such height within the area, and the
    same turned round; as in NovelAI's aspect-ratio bucketing, but by the longest aspect allowed.

    Args:
        size_px: Side of the square whose area none exceeds, px.
        step_px: Sides are multiples of this, px.
        max_aspect: Longer side over shorter side, at most.

    Returns:
        Sizes (width, height), from the tallest to the widest.
    """
    found = {(size_px // step_px * step_px,) * 2}
    for width in range(step_px, math.floor(size_px * math.sqrt(max_aspect)) + 1, step_px):
        height = size_px * size_px // width // step_px * step_px
        if height and max(width, height) <= max_aspect * min(width, height):
            found |= {(width, height), (height, width)}
    return sorted(found, key=lambda size: (size[0] / size[1], size))


def nearest_bucket(size: Size, choices: Iterable[Size]) -> Size:
    """The bucket whose aspect ratio is nearest (by its logarithm; the larger one of two equally near)."""
    aspect = math.log(size[0] / size[1])
    return min(choices, key=lambda one: (round(abs(math.log(one[0] / one[1]) - aspect), 9), -one[0] * one[1], one))


def bucket_step_px(settings: Fit) -> int:
    """Multiple of a bucket's sides: an eighth of the base's side, between 8 and 64 px."""
    return settings.bucket_step_px or max(8, min(64, (settings.size_px or 512) // 64 * 8))


@dataclass(frozen=True)
class Fitted:
    """A fitted picture and where it came from."""

    picture: Image.Image
    box: Box  # left, top, width, height of the picture inside the fitted one, px
    corner: Size  # left, top that a crop cut off, px of the scaled picture


def fit_picture(picture: Image.Image, settings: Fit, resample: Image.Resampling = LANCZOS) -> Fitted:
    """Fit one picture, or one mask (`L`, padded with black and scaled by `resample`).

    Padding and buckets never cut anything off: what a bucket's shape does not fit exactly is padded
    (and `train.mask: padding` keeps that from being learnt). Only `center_crop` cuts.
    """
    side = _side(settings)
    fill = "#000000" if picture.mode == "L" else settings.fill
    if settings.method == "center_crop":
        square, box = center_crop(picture, side, fill, resample)
        scale = side / min(picture.size)
        corner = (round((picture.width * scale - side) / 2), round((picture.height * scale - side) / 2))
        return Fitted(square, box, corner)
    size = (side, side)
    if settings.method == "bucket":
        every = buckets(side, bucket_step_px(settings), settings.bucket_max_aspect or 2.0)
        size = nearest_bucket(picture.size, every)
    whole, box = place(picture, size, fill, resample)
    return Fitted(whole, box, (0, 0))


def _side(settings: Fit) -> int:
    if settings.size_px is None:
        raise ValueError("fitting needs size_px")
    return settings.size_px


def fit_dataset(
    settings: Fit, source: Path, out: Path, mask_source: str | None = None, identity: str = ""
) -> list[Path]:
    """Write `pictures/<id>.png` for every picture of a manifest, and `fit.jsonl` saying where each lies.

    A picture that was fitted by the same settings and code is taken from the store: Snakemake deletes a job's outputs
    before it runs. `kept.json`, which is no output, remembers which file that is.

    Args:
        settings: Method, fill and side; `size_px` must be set.
        source: Folder with `manifest.jsonl` and `raw/`.
        out: Folder to write.
        mask_source: Where masks come from: `alpha`, a folder, or None; they go to `pictures/masks/<id>.png`.
        identity: Whatever else the pixels depend on, such as the code.

    Returns:
        The files written.

    Raises:
        DataError: If the manifest is not what a scrape writes, or a training picture's mask is missing, empty or of
            another size.
    """
    known = _remembered(out / KEPT)
    rows, files, kept, new = [], [], {}, 0
    pictures = manifest.read(source)
    named = Counter(Path(row["name"]).with_suffix("") for row in pictures if row["split"] == "train")
    progress = Progress("fit", len(pictures))
    with records.many_files() as write:
        for row in pictures:
            mask_file = None
            if row["split"] == "train":
                mask_file = masks.find(mask_source, row, named[Path(row["name"]).with_suffix("")] - 1)
            wanted = [out / PICTURES / f"{row['id']}.png"]
            if mask_source is not None and row["split"] == "train":
                wanted.append(out / masks.FOLDER / f"{row['id']}.png")
            parts = [identity, settings.model_dump_json(), row["sha256"], str(mask_source == "alpha")]
            key = hashing.sha256_text("\n".join([*parts, hashing.sha256_of(mask_file) if mask_file else ""]))
            before = known.get(row["id"], {})
            if before.get("key") == key and store.bring_back(KIND, before["files"], wanted):
                geometry = before["geometry"]
            else:
                geometry = _write(settings, source, row, wanted, mask_file, write)
                new += 1
            geometry = {name: geometry[name] for name in GEOMETRY}  # what is remembered comes back in another order
            kept[row["id"]] = {"key": key, "files": store.keep(KIND, wanted), "geometry": geometry}
            about = {name: row[name] for name in ("id", "name", "sha256", "split", "caption")}
            rows.append({**about, "file": wanted[0].relative_to(out).as_posix(), "method": settings.method, **geometry})
            files += wanted
            progress.advance()
    for stale in {*(out / PICTURES).rglob("*.png")} - set(files):
        stale.unlink()
    records.write_json(out / KEPT, kept)
    store.drop_unused(store.STORE / KIND)
    records.write_jsonl(out / "fit.jsonl", rows)
    counts = Counter("x".join(map(str, row["bucket"])) for row in rows)
    shapes = ", ".join(f"{count} of {shape} px" for shape, count in sorted(counts.items()))
    print(f"fit: {new} new, {len(rows) - new} kept; {shapes}", flush=True)
    _say_enlarged(rows, settings)
    return [out / "fit.jsonl", *files]


def _say_enlarged(rows: list[records.Row], settings: Fit) -> None:
    """Name pictures that are smaller than what they are fitted to: they are kept, but were drawn larger."""
    scales = {row["name"]: max(row["box"][2] / row["original"][0], row["box"][3] / row["original"][1]) for row in rows}
    enlarged = sorted((row for row in rows if scales[row["name"]] > 1), key=lambda row: -scales[row["name"]])
    if enlarged:
        sizes = [f"{r['name']} ({r['original'][0]} x {r['original'][1]} px, {scales[r['name']]:.1f} times)"
                 for r in enlarged[:5]]  # fmt: skip
        more = f" and {len(enlarged) - 5} more" if len(enlarged) > 5 else ""
        print(
            f"fit: {len(enlarged)} smaller than {_side(settings)} px and enlarged, which adds no detail: "
            f"{printable(', '.join(sizes))}{more}",
            flush=True,
        )


def _remembered(path: Path) -> dict[str, Any]:
    """What was fitted before; a damaged memory is none."""
    try:
        known = records.read_json(path) if path.is_file() else {}
        return {str(name): row for name, row in known.items() if {"key", "files", "geometry"} <= set(row)}
    except (ValueError, AttributeError, TypeError):
        return {}


def _write(
    settings: Fit, source: Path, row: records.Row, wanted: list[Path], mask_file: Path | None, write: records.Write
) -> dict[str, object]:
    """Fit one picture and its mask; returns what `fit.jsonl` says about their geometry."""
    matte = settings.fill if settings.fill.startswith("#") else "#ffffff"
    raw = source / "raw" / row["file"]
    if not raw.is_file():
        raise DataError(f"{row['name']}: there is no file {raw}; bring it back with `dvc checkout data/sets`")
    opened = open_picture(raw.read_bytes(), row["name"])
    picture = to_rgb(opened, matte)
    fitted = fit_picture(picture, settings)
    write(wanted[0], png_bytes(fitted.picture))
    if len(wanted) > 1:
        mask = masks.read(mask_file, picture.size, row["name"]) if mask_file else masks.of_alpha(opened, row["name"])
        same = fit_picture(mask, settings, BILINEAR)
        if same.box != fitted.box:
            raise ValueError(f"{row['name']}: its mask lies at {same.box}, not at {fitted.box}")
        if not np.asarray(same.picture).any():
            raise DataError(
                f"{row['name']}: nothing that its mask learns is left after fit.method: {settings.method} at "
                f"{fitted.picture.width} x {fitted.picture.height} px; pad keeps all of a picture"
            )
        write(wanted[1], png_bytes(same.picture))
    values = (fitted.box, fitted.picture.size, picture.size, fitted.corner)
    return {name: list(value) for name, value in zip(GEOMETRY, values, strict=True)}
