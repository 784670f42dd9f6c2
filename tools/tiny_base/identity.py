"""Whether a LoRA learnt who a character is: `python -m tools.tiny_base.identity captain results/v8`.

A character's pictures are drawn, so everything that can be asked of a sample has an exact truth beside it:
the same picture of another identity, without the patch or the hat, or with hair of another colour. `mark_present` and
`hue_within_15_degrees` ask where the truth has its head, `mark_on_head` and `hair_on_head` where the sample has one.
"""

import argparse
import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdlora import records
from sdlora.errors import DataError
from sdlora.images.pictures import read_rgb
from sdlora.stages.sample.parts import reporting
from tools.tiny_base import heads, measures, world
from tools.tiny_base.characters import CHARACTERS, Character, padded, portrait, portraits, strangers
from tools.tiny_base.datasets import REFERENCES, TRAIN
from tools.tiny_base.pictures import Pixels
from tools.tiny_base.world import Picture

HUE_DEGREES = 15.0
#: A pixel shows the mark when it is nearer to the mark's colour than to what is below it, and this near (RGB, 0 … 255).
NEAR = 60.0
SHARE_OF_MARK = 0.5
LEAST_SATURATION = 0.2  # below it, a hue says nothing
# An eye is patched where half of a disc around it is dark, and twice as much as around the other: of drawn eyes a
# quarter is, of brown ones that a network smears a third. In units of half the eyes' distance; dark is below 90 of 255,
# and below this share of the cheeks'.
EYE_RADIUS, EYE_REACH, DARK, SHARE_OF_EYE, OF_CHEEKS = 0.7, 0.4, 90, 0.5, 0.6
SEARCH_PX = 48  # in smaller pictures a head is found a tenth as slowly, and as well
#: Other heads that a sample may show: as a network that learnt nothing draws them.
OTHERS: tuple[dict[str, list[str]], ...] = (
    {}, {"hairColor": ["#2c1b18"]}, {"hairColor": ["#c8a060"]}, {"skinColor": ["#5c3829"]},
    {"hairColor": ["#2c1b18"], "skinColor": ["#5c3829"]}, {"hairColor": ["#2c1b18"], "skinColor": ["#a26d3d"]},
)  # fmt: skip
NOTHING = (128, 128, 128)  # outside a sample: neither dark nor of any hue

Mask = NDArray[np.bool_]
Colours = NDArray[np.float64] | Pixels  # (H, W, 3), 0 … 255


@dataclass(frozen=True)
class Case:
    """A sample, and the picture whose caption it was drawn from."""

    drawn: Pixels  # (S, S, 3)
    picture: Picture


def differing(one: Colours, other: Colours, least: float = 40.0) -> Mask:
    """Pixels (H, W) whose colours are farther apart than `least` (RGB, 0 … 255)."""
    return np.asarray(np.linalg.norm(one.astype(np.float64) - other.astype(np.float64), axis=-1) > least)


def has_mark(case: Case, character: Character) -> bool:
    """Whether a sample shows the patch or the hat where the truth has it; a shift of two pixels is forgiven."""
    size = len(case.drawn)
    truth = portrait(case.picture, character.aspect, size).astype(np.float64)
    below = portrait(character.without_mark(case.picture), character.aspect, size).astype(np.float64)
    mask = differing(truth, below)
    shares = []
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            moved = np.roll(case.drawn.astype(np.float64), (dy, dx), (0, 1))[mask]
            to_mark = np.linalg.norm(moved - truth[mask], axis=-1)
            to_below = np.linalg.norm(moved - below[mask], axis=-1)
            shares.append(float(((to_mark < to_below) & (to_mark < NEAR)).mean()))
    return max(shares) >= SHARE_OF_MARK


def hue_error(case: Case, character: Character) -> float:
    """Degrees between a sample's hair and the true one's hue, where the truth has hair; 180 where it has no hue."""
    size = len(case.drawn)
    truth = portrait(case.picture, character.aspect, size)
    dyed = []
    for colour in ("#f7f7f7", "#151515"):
        options = {**case.picture.options, "hairColor": [colour]}
        dyed.append(portrait(replace(case.picture, options=options), character.aspect, size))
    hair = differing(dyed[0], dyed[1], 150.0)
    true, drawn = (_hue(picture[hair]) for picture in (truth, case.drawn))
    if true is None or drawn is None:
        return 180.0
    apart = float(abs(true - drawn) % 360)
    return min(apart, 360 - apart)


def _hue(colours: Pixels) -> float | None:
    """Degrees of the median colour of (N, 3), or None where it is grey."""
    hue, saturation, _ = colorsys.rgb_to_hsv(*(np.median(colours, axis=0) / 255))
    return None if saturation < LEAST_SATURATION else 360 * hue


def on_the_head(case: Case, character: Character) -> Case | None:
    """A sample moved and scaled so that its head lies where the truth's does; None where it shows none."""
    size = len(case.drawn)
    looks = [
        heads.head_of(padded(replace(one, options={**one.options, **colours}), character.aspect), SEARCH_PX)
        for one in (case.picture, character.without_mark(case.picture))
        for colours in OTHERS
    ]
    image = Image.fromarray(case.drawn)
    place = heads.find(image.resize((SEARCH_PX, SEARCH_PX), Image.Resampling.LANCZOS), looks)
    if place is None:
        return None
    (x, y), scale, larger = looks[0].middle, place.scale, size / SEARCH_PX
    matrix = (scale, 0, (place.x - scale * x) * larger, 0, scale, (place.y - scale * y) * larger)
    moved = image.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=NOTHING)
    return Case(np.asarray(moved), case.picture)


def has_patch(case: Case, character: Character) -> bool:
    """Whether a sample whose head lies where the truth's does has the patch's eye dark, and the other one not."""
    size = len(case.drawn)
    x, y, unit = world.eyes(padded(case.picture, character.aspect), size)
    down, across = np.mgrid[:size, :size] + 0.5
    bright = case.drawn.max(axis=-1)
    steps = EYE_REACH * np.array([-1, -0.5, 0, 0.5, 1])

    def disc(right: float, below: float) -> Mask:
        return np.asarray(np.hypot(across - x - right * unit, down - y - below * unit) < EYE_RADIUS * unit)

    dark = bright < min(DARK, OF_CHEEKS * float(np.median(bright[disc(0, 1.2)])))

    def share(side: int) -> float:
        """The darkest disc's, about where the eye is."""
        return max(float(dark[disc(side + dx, dy)].mean()) for dx in steps for dy in steps)

    patched, other = share(1), share(-1)
    return patched >= SHARE_OF_EYE and other <= patched / 2


def head_shows(case: Case, character: Character) -> dict[str, bool]:
    """Whether the mark is on a sample's head, and whether its hair has the character's hue, wherever the head is."""
    found = on_the_head(case, character)
    if found is None:
        return {"mark_on_head": False, "hair_on_head": False}
    mark = has_patch if character.over else has_mark
    return {"mark_on_head": mark(found, character), "hair_on_head": hue_error(found, character) <= HUE_DEGREES}


def own_is_nearest(case: Case, character: Character) -> dict[str, bool]:
    """Whether the truth is nearer than 19 strangers with the same caption, by pixels and by features."""
    size = len(case.drawn)
    others = strangers(character, case.picture, measures.CANDIDATES - 1)
    truths = np.stack([portrait(one, character.aspect, size) for one in (case.picture, *others)])
    image = Image.fromarray(case.drawn)
    return {
        "pixels": int(measures.pixel_distances([image], truths)[0].argmin()) == 0,
        "features": int(measures.feature_distances([image], truths)[0].argmin()) == 0,
    }


def head_count(case: Case, character: Character) -> int:
    """How many of the character's heads a sample shows."""
    return heads.count(case.drawn, heads.head_of(padded(case.picture, character.aspect), len(case.drawn)))


def figures(cases: Sequence[Case], character: Character) -> dict[str, float | int]:
    """The shares of samples that pass each question."""
    nearest = [own_is_nearest(case, character) for case in cases]
    counts = [head_count(case, character) for case in cases]
    shown = [head_shows(case, character) for case in cases]
    rows = {
        "own_by_pixels": [one["pixels"] for one in nearest],
        "own_by_features": [one["features"] for one in nearest],
        "mark_present": [has_mark(case, character) for case in cases],
        "hue_within_15_degrees": [hue_error(case, character) <= HUE_DEGREES for case in cases],
        **{name: [one[name] for one in shown] for name in ("mark_on_head", "hair_on_head")},
        "one_head": [number == 1 for number in counts],
        "two_heads": [number > 1 for number in counts],
    }
    return {"samples": len(cases), **{name: round(float(np.mean(row)), 4) for name, row in rows.items()}}


def references(character: Character) -> dict[str, Picture]:
    """The held-out pictures by the name that the dataset gives them."""
    held_out = portraits(character, TRAIN + REFERENCES, 0)[TRAIN:]
    return {f"references/{number:03d}.png": picture for number, picture in enumerate(held_out, start=1)}


def read_cases(character: Character, manifest: Path, version: Path, step: int, beside: int | None = None) -> list[Case]:
    """A version's samples at a step, each with its truth.

    Args:
        character: Whose dataset the version learnt.
        manifest: The dataset's `manifest.jsonl`: which picture has which id.
        version: Its folder of results.
        step: 0 is the base.
        beside: The step that it is compared with: both are of the same references and seeds.

    Raises:
        DataError: If there are no samples of that step, or they are of other pictures.
    """
    pictures = references(character)
    names = {row["id"]: row["name"] for row in records.read_jsonl(manifest)}
    both = {step, step if beside is None else beside}
    rows = [row for row in reporting(version, both) if row["step"] == step]
    if not rows:
        raise DataError(f"{version}: no samples of step {step} in samples/ or test_samples/")
    unknown = sorted({row["reference"] for row in rows if names.get(row["reference"]) not in pictures})
    if unknown:
        raise DataError(f"{version}: {unknown[0]} is not a reference of {character.trigger} in {manifest}")
    return [Case(np.asarray(read_rgb(version / row["file"])), pictures[names[row["reference"]]]) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("character", choices=sorted(CHARACTERS))
    parser.add_argument("versions", nargs="+", type=Path, help="folders of results, one a training seed")
    parser.add_argument("--manifest", type=Path, help="default: data/sets/CHARACTER/manifest.jsonl")
    parser.add_argument("--step", type=int, help="default: each version's best.json")
    parser.add_argument("--out", type=Path, default=Path("results/base/identity.json"))
    args = parser.parse_args()
    character = CHARACTERS[args.character]
    manifest = args.manifest or Path(f"data/sets/{args.character}/manifest.jsonl")
    cases: dict[str, list[Case]] = {"step_0": [], "chosen": []}
    for version in args.versions:
        step = args.step if args.step is not None else records.read_json(version / "best.json")["best_step"]
        cases["step_0"] += read_cases(character, manifest, version, 0, step)
        cases["chosen"] += read_cases(character, manifest, version, step, 0)
    found = {name: figures(rows, character) for name, rows in cases.items()}
    records.write_json(args.out, found)
    print(records.canonical_json(found))


if __name__ == "__main__":
    main()
