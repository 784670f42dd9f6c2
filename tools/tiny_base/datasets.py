"""Draw the embedded datasets: `python -m tools.tiny_base.datasets`.

`captain` is one identity that the base never saw, in wide pictures with the face at one side;
`pixel-avatars` is one style that the base never saw. References come with true captions.
"""

import argparse
import random
from pathlib import Path

from sdlora import records
from sdlora.pictures import png_bytes
from tools.tiny_base import world
from tools.tiny_base.world import Picture

HEIGHT_PX = 256
# The captain: a colour of hair no style offers, and a patch over one eye, in toon-head's own units.
IDENTITY = {
    "hairVariant": "undercut",
    "hairColor": ["#12a5a5"],
    "skinColor": ["#f1c3a5"],
    "headVariant": "head",
    "bodyVariant": "body",
    "strokeColor": ["#000000"],
}
EYE_PATCH = (
    '<path d="M215 330 L560 400" stroke="#151515" stroke-width="16" fill="none"/>'
    '<ellipse cx="455" cy="398" rx="58" ry="50" fill="#151515"/>'
)
CLOTHES_COLOURS = ("#151613", "#0b3286", "#545454", "#147f3c", "#f97316", "#731ac3", "#b11f1f", "#e8e9e6")


def captain(count: int, seed: int) -> list[Picture]:
    """`count` different pictures of the captain: clothes, expression, background and side vary."""
    rng = random.Random(f"captain-{seed}")
    found: dict[str, Picture] = {}
    while len(found) < count:
        options = {
            **IDENTITY,
            "clothesVariant": rng.choice(("dress", "openJacket", "shirt", "tShirt", "turtleNeck")),
            "clothesColor": [rng.choice(CLOTHES_COLOURS)],
            "mouthVariant": rng.choice(("agape", "angry", "laugh", "sad", "smile")),
            "eyesVariant": rng.choice(("bow", "happy", "humble", "wide", "wink")),
            "eyebrowsVariant": rng.choice(("angry", "happy", "neutral", "raised", "sad")),
        }
        side = ("small, on the left", "small, on the right")[len(found) % 2]
        outwards = (0.0, 0.12 if side.endswith("right") else -0.12, 0.0)  # half of the face is outside the centre
        picture = Picture("toon-head", options, rng.choice(world.BACKGROUNDS), side, outwards, EYE_PATCH)
        found.setdefault(world.describe(picture), picture)
    return list(found.values())


def pixel_avatars(count: int, seed: int) -> list[Picture]:
    """`count` different avatars of the held-out style, plain framing."""
    rng = random.Random(f"pixel-{seed}")
    found: dict[str, Picture] = {}
    for number in range(100 * count):
        options = world.resolve(world.HELD_OUT_STYLE, f"pixel-{seed}-{number}")
        picture = Picture(world.HELD_OUT_STYLE, options, rng.choice(world.BACKGROUNDS), "")
        found.setdefault(world.describe(picture), picture)
        if len(found) == count:
            break
    return list(found.values())


def write(folder: Path, pictures: list[Picture], held_out: int, aspect: float, licence: str) -> None:
    """Write training pictures, `references/`, true captions of the references, and the licence."""
    overrides = []
    for number, picture in enumerate(pictures):
        reference = number >= len(pictures) - held_out
        index = number - (len(pictures) - held_out) if reference else number
        name = f"references/{index + 1:03d}.png" if reference else f"train/{index + 1:03d}.png"
        records.write_bytes(folder / name, png_bytes(world.draw(picture, HEIGHT_PX, aspect)))
        if reference:
            overrides.append({"file": name, "caption": picture.caption})
    records.write_jsonl(folder / "captions.override.jsonl", overrides)
    text = f"{licence}\nDrawn by `python -m tools.tiny_base.datasets`; references are captioned by what was drawn.\n"
    records.write_text(folder / "LICENSE.txt", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/embedded"))
    out = parser.parse_args().out
    recoloured = "; recoloured and with an eye patch added"
    write(out / "captain", captain(35, 0), 10, 1.5, world.attribution("toon-head") + recoloured)
    write(out / "pixel-avatars", pixel_avatars(120, 0), 20, 1.0, world.attribution(world.HELD_OUT_STYLE))


if __name__ == "__main__":
    main()
