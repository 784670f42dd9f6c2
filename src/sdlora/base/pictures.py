"""The pictures the embedded base is trained on: drawn once, kept as one array with their captions."""

import json
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sdlora.base import world

HELD_OUT_COUNT = 200


def _draw(task: tuple[int, int, int]) -> tuple[str, bool, bytes]:
    index, seed, size_px = task
    picture = world.sample(index, seed)
    return picture.caption, world.is_held_out(picture), world.draw(picture, size_px).tobytes()


def make(folder: Path, count: int, seed: int, size_px: int, workers: int = 2) -> None:
    """Draw until `count` training pictures and 200 held-out ones exist.

    Writes `pictures.npy` (N, H, W, 3) uint8, `held_out.npy` and their captions as JSON lists.
    """
    if (folder / "captions.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    train: list[tuple[str, bytes]] = []
    held: list[tuple[str, bytes]] = []
    tasks = ((index, seed, size_px) for index in range(100 * count + 100 * HELD_OUT_COUNT))
    with Pool(workers) as pool:
        for caption, held_out, raw in pool.imap(_draw, tasks, chunksize=64):
            chosen, limit = (held, HELD_OUT_COUNT) if held_out else (train, count)
            if len(chosen) < limit:
                chosen.append((caption, raw))
                if len(chosen) == count:
                    print(f"pictures: {len(train)} to learn from, {len(held)} held out", flush=True)
            if len(train) == count and (len(held) == HELD_OUT_COUNT or count < 1000):
                break
        pool.terminate()
    for name, rows in (("pictures", train), ("held_out", held)):
        array = np.frombuffer(b"".join(raw for _, raw in rows), np.uint8).reshape(-1, size_px, size_px, 3)
        np.save(folder / f"{name}.npy", array)
    captions = {"pictures": [caption for caption, _ in train], "held_out": [caption for caption, _ in held]}
    (folder / "captions.json").write_text(json.dumps(captions), encoding="utf-8")


def held_out(seed: int, size_px: int, count: int = HELD_OUT_COUNT) -> tuple[NDArray[np.uint8], list[str]]:
    """The first held-out pictures (N, H, W, 3) uint8 and their captions: those that `make` keeps from training."""
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
    """Pictures (N, H, W, 3) uint8 and their captions; `name` is `pictures` or `held_out`."""
    captions = json.loads((folder / "captions.json").read_text("utf-8"))[name]
    return np.load(folder / f"{name}.npy", mmap_mode="r"), captions
