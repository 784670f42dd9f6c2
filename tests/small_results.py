"""Results and their datasets as the stages leave them, without a base: pictures that near their references."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import chdir
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from helpers import ROOT
from PIL import Image
from small_set import CAPTION, picture_id, write_manifest

from sdlora import records
from sdlora.config.evaluate import Evaluate
from sdlora.config.params import Fit
from sdlora.images.pictures import png_bytes, read_rgb
from sdlora.stages.choose.choose import choose_by_samples
from sdlora.stages.evaluate.run import CHOICE, evaluate_version
from sdlora.stages.fit.fit import PICTURES, fit_dataset
from sdlora.stages.report.page import write_index
from sdlora.stages.sample.parts import FOLDERS, INDEX, VALIDATION, split

SETTINGS = Evaluate(metrics=("psnr_db", "ssim"), choose_by=("psnr_db",), bootstrap_samples=100)
TRAINED = 8  # pictures of a set that are learnt from; the others are references
DUPLICATE, REPLACED = picture_id(0), "f" * 16


def make_set(source: Path, side_px: int, references: int = 10, masked: bool = False) -> Path:
    """A set of the embedded character, wide pictures padded to squares; returns the fitted set's folder.

    Args:
        source: The dataset's folder.
        side_px: Side of the fitted pictures.
        references: How many there are.
        masked: Whether a mask leaves out the right half of each.
    """
    files = sorted((ROOT / "data/embedded/captain/train").glob("*.png"))[:TRAINED]
    files += sorted((ROOT / "data/embedded/captain/references").glob("*.png"))[:references]
    pictures = {}
    for number, file in enumerate(files):
        with Image.open(file) as picture:
            size = (side_px, side_px * 3 // 4) if number < TRAINED else (side_px, side_px)
            pictures[f"{number:03d}.png"] = picture.convert("RGB").resize(size)
    write_manifest(source, pictures)
    rows = records.read_jsonl(source / "manifest.jsonl")
    split_of = {row["id"]: "train" if number < TRAINED else "reference" for number, row in enumerate(rows)}
    records.write_jsonl(source / "manifest.jsonl", [{**row, "split": split_of[row["id"]]} for row in rows])
    for name in [row["name"] for row in rows][:TRAINED] if masked else ():
        mask = Image.new("L", pictures[name].size, 0)
        mask.paste(255, (0, 0, mask.width // 2, mask.height))
        records.write_bytes(source / "masks" / name, png_bytes(mask))
    fitted, whole = source / "pad", source.resolve()
    with chdir(source):  # where the store lies
        fit_dataset(Fit(size_px=side_px), whole, whole / "pad", str(whole / "masks") if masked else None)
    captions = [
        {"id": name, "caption": CAPTION, "origin": "override", "split": part} for name, part in split_of.items()
    ]
    records.write_jsonl(fitted / "captions.jsonl", captions)
    return fitted


def make_version(result: Path, fitted: Path, steps: Sequence[int], shift: int, seeds: Sequence[int] = (42,)) -> None:
    """Samples of a version, measured and chosen among by the real stages.

    Args:
        result: The version's folder.
        fitted: Its set.
        steps: The checkpoints, step 0 first.
        shift: By how many pixels its pictures lie beside the references.
        seeds: Of the pictures that choose; those that report have four.
    """
    rows = [row for row in records.read_jsonl(fitted / "fit.jsonl") if row["split"] == "reference"]
    truths = {row["id"]: read_rgb(fitted / PICTURES / f"{row['id']}.png") for row in rows}
    for part, names in zip(FOLDERS, split(sorted(truths), 0.5), strict=True):
        own = steps if part == VALIDATION else (0, steps[-1])
        drawn = [
            _draw(result / FOLDERS[part], step, name, seed, truths, shift, step / steps[-1])
            for step, name, seed in product(own, names, seeds if part == VALIDATION else (42, 43, 44, 45))
        ]
        records.write_jsonl(result / FOLDERS[part] / INDEX, drawn)
    choice = choose_by_samples(SETTINGS, result, fitted, sorted(truths), steps[-1])
    records.write_json(result / CHOICE, {**asdict(choice), "by_rule": steps[-1], "chosen": None})
    evaluate_version(SETTINGS, result, fitted)
    log = [[step, 0.5 / (1 + step), 1e-4] for step in range(1, steps[-1] + 1)]
    records.write_csv(result / "train_log.csv", ["step", "loss", "learning_rate"], log)


def _draw(
    folder: Path, step: int, name: str, seed: int, truths: Mapping[str, Image.Image], shift: int, near: float
) -> records.Row:
    """One sample: a blend of the reference and of another, which depends on the seed."""
    others = sorted(truths)
    other = np.asarray(truths[others[(others.index(name) + seed) % len(others)]])
    truth = np.roll(np.asarray(truths[name]), shift if step else 0, axis=0)
    file = f"step-{step:06d}/{name}-seed{seed}.png"
    mixed = Image.blend(Image.fromarray(other), Image.fromarray(truth), 0.2 + 0.7 * near)
    records.write_bytes(folder / file, png_bytes(mixed))
    return {"step": step, "reference": name, "seed": seed, "file": file, "prompt": CAPTION}


def refuse(source: Path, count: int) -> Path:
    """Say of a set what it refused: copies of its first picture, of a reference, and so many of which nothing is left.

    Returns:
        The user's own folder, where two of them still lie.
    """
    manifest = records.read_jsonl(source / "manifest.jsonl")
    folder, first = source / "mine", manifest[0]
    about: dict[str, Any] = {"verdict": "rejected", "kind": "duplicate", "format": "PNG"}
    rows = []
    for name, copy_of in (("again.png", REPLACED), ("smaller.png", first["id"]), ("test.png", manifest[-1]["id"])):
        with Image.open(source / "raw" / first["file"]) as picture:
            content = png_bytes(picture.rotate(3 if name == "again.png" else 5))
        if name != "test.png":
            records.write_bytes(folder / name, content)
        sha256 = hashlib.sha256(content).hexdigest()
        rows.append({**about, "name": name, "sha256": sha256, "reason": f"looks like {copy_of}", "copy_of": copy_of})
    replaced = {"name": "replaced.jpg", "sha256": REPLACED + "0" * 48, "reason": "smaller", "copy_of": first["id"]}
    same = {"name": "same.png", "sha256": first["sha256"], "reason": "the same bytes", "copy_of": first["id"]}
    gone = [{"name": f"https://x.example/{n}", "sha256": None, "reason": "HTTP status 404"} for n in range(count)]
    records.write_jsonl(source / "rejected.jsonl", [*rows, *({**about, **row} for row in (replaced, same, *gone))])
    return folder


def make_page(
    folder: Path, versions: Mapping[str, Path], steps: Sequence[int], seeds: Sequence[int] = (42,), **more: Any
) -> Path:
    """Results below a folder, and the page over them.

    Args:
        folder: The project's.
        versions: Each one's fitted set, by name.
        steps: The checkpoints, step 0 first.
        seeds: Of the pictures that choose.
        more: As `write_index` takes it.

    Returns:
        The page.
    """
    for shift, (name, fitted) in enumerate(versions.items()):
        make_version(folder / "results" / name, fitted, steps, shift, seeds)
    settings = {name: {"rank": 2 + number, "remark": ""} for number, name in enumerate(versions)}
    page, _ = write_index(settings, folder / "results", folder / "results/report", versions, versions, **more)
    return page
