"""Draw the embedded datasets: `python -m tools.tiny_base.datasets --out FOLDER`.

`captain` and `gardener` are identities that the base never saw, in portraits with the head high in them;
`pixel-avatars` is a style that the base never saw.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from sdlora import records
from sdlora.images.pictures import png_bytes
from tools.tiny_base import styles, world
from tools.tiny_base.characters import CHARACTERS, Character, portraits
from tools.tiny_base.world import Picture

HEIGHT_PX = 256
TRAIN, REFERENCES = 25, 10


def pixel_avatars(count: int, seed: int) -> list[Picture]:
    """`count` different avatars of the held-out style, plain framing."""
    rng = random.Random(f"pixel-{seed}")
    found: dict[str, Picture] = {}
    for number in range(100 * count):
        picture = world.pixel_avatar(number, seed, rng)
        found.setdefault(world.describe(picture), picture)
        if len(found) == count:
            break
    return list(found.values())


def write(folder: Path, pictures: Sequence[Picture], held_out: int, aspect: float, licence: str) -> None:
    """Write training pictures, `references/` and the licence."""
    for number, picture in enumerate(pictures):
        reference = number >= len(pictures) - held_out
        index = number - (len(pictures) - held_out) if reference else number
        name = f"references/{index + 1:03d}.png" if reference else f"train/{index + 1:03d}.png"
        records.write_bytes(folder / name, png_bytes(world.draw(picture, HEIGHT_PX, aspect)))
    records.write_text(folder / "LICENSE.txt", f"{licence}\nDrawn by `python -m tools.tiny_base.datasets`.\n")


def write_character(folder: Path, character: Character) -> None:
    """Write a character's dataset."""
    licence = styles.attribution(character.style) + "; recoloured, with an eye patch or a hat and glasses added"
    drawn = portraits(character, TRAIN + REFERENCES, 0)
    write(folder, drawn, REFERENCES, character.aspect, licence)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/embedded"), help="folder of the datasets' folders")
    out = parser.parse_args().out
    for name, character in CHARACTERS.items():
        write_character(out / name, character)
    licence = styles.attribution(styles.HELD_OUT_STYLE)
    write(out / "pixel-avatars", pixel_avatars(120, 0), 20, 1.0, licence)


if __name__ == "__main__":
    main()
