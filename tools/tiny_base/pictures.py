"""The pictures the embedded base is trained on: drawn once, kept as one array with their captions."""

import itertools
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdlora import records
from sdlora.progress import Progress
from tools.tiny_base import world

HELD_OUT_COUNT = 200
AT_ONCE = 256


def _draw(task: tuple[int, int, int, bool]) -> tuple[str, bytes] | None:
    index, seed, size_px, dyed = task
    picture = world.sample(index, seed, dyed=dyed)
    return None if world.is_held_out(picture) else (picture.caption, world.draw(picture, size_px).tobytes())


def make(folder: Path, name: str, count: int, seed: int, size_px: int, dyed: bool = False, workers: int = 2) -> None:
    """Draw the world's first `count` pictures that are not held out.

    Writes `<name>.npy` (N, H, W, 3) uint8 and their captions, `<name>.json`; does nothing where they are.
    """
    if (folder / f"{name}.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, bytes]] = []
    progress = Progress(name, count)
    with Pool(workers) as pool:
        for first in itertools.count(0, AT_ONCE):
            tasks = [(index, seed, size_px, dyed) for index in range(first, first + AT_ONCE)]
            rows += filter(None, pool.map(_draw, tasks))
            progress.update(min(len(rows), count))
            if len(rows) >= count:
                break
    array = np.frombuffer(b"".join(raw for _, raw in rows[:count]), np.uint8).reshape(-1, size_px, size_px, 3)
    np.save(folder / f"{name}.npy", array)
    records.write_json(folder / f"{name}.json", [caption for caption, _ in rows[:count]])


def held_out(seed: int, size_px: int, count: int = HELD_OUT_COUNT) -> tuple[NDArray[np.uint8], list[str]]:
    """The first held-out pictures (N, H, W, 3) uint8 and their captions: those that `make` leaves out."""
    found: list[world.Picture] = []
    index = 0
    while len(found) < count:
        picture = world.sample(index, seed)
        index += 1
        if world.is_held_out(picture):
            found.append(picture)
    drawn = [np.asarray(world.draw(picture, size_px)) for picture in found]
    return np.stack(drawn), [picture.caption for picture in found]


def load(folder: Path, name: str) -> tuple[NDArray[np.uint8], list[str]]:
    """Pictures (N, H, W, 3) uint8 and their captions, as `make` drew them."""
    return np.load(folder / f"{name}.npy", mmap_mode="r"), records.read_json(folder / f"{name}.json")


def resized(pictures: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """The same pictures (N, size_px, size_px, 3), by Lanczos."""
    side = (size_px, size_px)
    return np.stack([np.asarray(Image.fromarray(one).resize(side, Image.Resampling.LANCZOS)) for one in pictures])
