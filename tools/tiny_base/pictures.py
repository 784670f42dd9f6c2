"""The pictures the embedded base is trained on: drawn once, kept as one file of pixels and one of captions."""

import itertools
import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sdlora import records
from sdlora.progress import Progress
from tools.tiny_base import world
from tools.tiny_base.world import Picture

HELD_OUT_COUNT = 200
AT_ONCE = 256

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Drawn:
    """Pictures (N, H, W, 3) uint8, read from the disk where they are asked for, and their captions."""

    pixels: Pixels
    captions: list[str]


#: Picture number `index` of a seed, None where that one is held out.
Source = Callable[[int, int], Picture | None]


def learnt(index: int, seed: int) -> Picture | None:
    """What every part of the base learns from: the world without what is held out."""
    picture = world.sample(index, seed)
    return None if world.is_held_out(picture) or world.is_identity(picture) else picture


def captioned(index: int, seed: int) -> Picture | None:
    """What BLIP alone learns from, in turns: the held-out style, and hair, hats and glasses like the characters'.

    A captioner reads what the base cannot draw: published BLIP has seen any style, too. It sees none of the
    datasets' pictures, and no held-out combination of attributes but the characters' hair.
    """
    if index % 2:
        return world.pixel_avatar(index, seed, random.Random(f"pixel-{seed}-{index}"))
    picture = world.like_a_character(index, seed)
    return None if world.is_held_out(picture) else picture


def _draw(index: int, seed: int, size_px: int, source: Source) -> tuple[int, str, bytes] | None:
    picture = source(index, seed)
    return None if picture is None else (index, picture.caption, world.draw(picture, size_px).tobytes())


def make(
    folder: Path, name: str, count: int, seed: int, size_px: int, workers: int = 2, source: Source = learnt
) -> None:
    """Draw the first `count` pictures of a source.

    Writes `<name>.rgb`, the pixels one picture after the other, and their captions, `<name>.json`; does nothing
    where they are. What a killed run has drawn is kept.
    """
    if (folder / f"{name}.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    pixels, said = folder / f"{name}.rgb", folder / f"{name}.captions.part"
    known = _resume(pixels, said, 3 * size_px * size_px)
    progress = Progress(name, count, len(known))
    first = known[-1][0] + 1 if known else 0
    with Pool(workers) as pool, pixels.open("ab") as pixel_file, said.open("a", encoding="utf-8") as said_file:
        draw = partial(_draw, seed=seed, size_px=size_px, source=source)
        while len(known) < count:
            following = first + min(AT_ONCE, max(8, count - len(known)))
            rows = [row for row in pool.map(draw, range(first, following)) if row][: count - len(known)]
            first = following
            pixel_file.write(b"".join(raw for _, _, raw in rows))
            _to_disk(pixel_file)  # before the captions, which say how much is whole
            known += [(index, caption) for index, caption, _ in rows]
            said_file.write("".join(json.dumps([index, caption]) + "\n" for index, caption, _ in rows))
            _to_disk(said_file)
            progress.update(len(known))
    records.write_json(folder / f"{name}.json", {"size_px": size_px, "captions": [caption for _, caption in known]})
    said.unlink()


def _to_disk(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _resume(pixels: Path, said: Path, picture_bytes: int) -> list[tuple[int, str]]:
    """(index, caption) of the pictures that are whole; what follows them is cut off."""
    lines = said.read_bytes().split(b"\n")[:-1] if said.exists() else []
    whole = min(len(lines), pixels.stat().st_size // picture_bytes if pixels.exists() else 0)
    known = [(int(index), str(caption)) for index, caption in map(json.loads, lines[:whole])]
    said.write_bytes(b"".join(line + b"\n" for line in lines[:whole]))
    with pixels.open("ab") as file:
        file.truncate(whole * picture_bytes)
    return known


def load(folder: Path, name: str) -> Drawn:
    """Pictures and their captions, as `make` drew them."""
    described = records.read_json(folder / f"{name}.json")
    side = described["size_px"]
    shape = (len(described["captions"]), side, side, 3)
    return Drawn(np.memmap(folder / f"{name}.rgb", np.uint8, "r", shape=shape), described["captions"])


def kept_back(
    seed: int, count: int = HELD_OUT_COUNT, wanted: Callable[[Picture], bool] = lambda picture: True
) -> Iterator[Picture]:
    """The first held-out pictures, those that `make` leaves out, that are as `wanted`."""
    found = 0
    for index in itertools.count():
        picture = world.sample(index, seed)
        if world.is_held_out(picture) and not world.is_identity(picture) and wanted(picture):
            yield picture
            found += 1
            if found == count:
                return


def pixels_of(pictures: list[Picture], size_px: int) -> Pixels:
    """Pictures drawn as (N, size_px, size_px, 3) uint8."""
    return np.stack([np.asarray(world.draw(picture, size_px)) for picture in pictures])
