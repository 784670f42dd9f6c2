"""Small files that cost a decoder much: time, memory, or its life. Every source decodes them."""

import contextlib
import io
import resource
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from rig import zoo

from hostile import attack
from hostile.hub import picture
from sdlora import records
from sdlora.config.dataset import Dataset
from sdlora.config.params import Fit
from sdlora.config.sources import FolderSource, Scrape
from sdlora.errors import DataError
from sdlora.images import decoder
from sdlora.images.pictures import open_picture
from sdlora.images.worker import scans_of
from sdlora.stages.fit.fit import fit_dataset
from sdlora.stages.scrape.gather import gather
from sdlora.stages.scrape.verify import examine

MOST_TIMES = 16  # what one picture of 64 megapixels costs, for all of one attack: 8 s of computing on a quiet core
MOST_MIB = 1200  # of a decoding process


@cache
def many_scans(count: int, side: int = 2000) -> bytes:
    """A progressive JPEG whose last scan is there again and again."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * count + b"\xff\xd9"


@cache
def float_tiff(side: int = 8000) -> bytes:
    """A flat picture of 64-bit-hungry numbers, packed to almost nothing."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side), 0.5, np.float32)).save(buffer, "TIFF", compression="tiff_adobe_deflate")
    return buffer.getvalue()


FILES: dict[str, Callable[[], bytes]] = {
    "a progressive JPEG of 4,000 scans": lambda: many_scans(4000),
    "a float TIFF of 64 megapixels": float_tiff,
    "a 20,000 x 20,000 px PNG": lambda: zoo.png_of(20_000, 20_000, b"x\x9c\x03\x00\x00\x00\x00\x01"),
    "a PNG bomb of 81 megapixels": lambda: zoo.bomb(9_000),
    "a WebP of 16,383 x 16,383 px": lambda: _webp(16_383),
    "an animation of 2,000 frames": lambda: _gif(2000),
}


def _webp(side: int) -> bytes:
    """The head of a picture that large: a canvas that the decoder makes room for."""
    size = (side - 1).to_bytes(3, "little")
    extended = b"VP8X" + (10).to_bytes(4, "little") + bytes([2, 0, 0, 0]) + size + size
    body = b"WEBP" + extended + b"ANIM" + (6).to_bytes(4, "little") + bytes(6)
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def _gif(frames: int) -> bytes:
    buffer = io.BytesIO()
    pictures = [Image.new("L", (64, 64), number % 256) for number in range(frames)]
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:])
    return buffer.getvalue()


def _peak_mib() -> float:
    """The most that any decoding process has used so far."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def _computed_s() -> float:
    """What this process and those that it has waited for have computed."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


@cache
def _one_picture_s() -> float:
    """What decoding and shrinking a large picture computes here and now: machines differ, and hours of one machine."""
    began = time.process_time()
    Image.open(io.BytesIO(float_tiff())).resize((64, 64))
    return time.process_time() - began


def _cost(began: float) -> str | None:
    pool = decoder._pool
    if pool is not None:
        pool.end()  # so that what its processes used is counted
        decoder._pool = None
    took = _computed_s() - began
    if took > MOST_TIMES * _one_picture_s():
        return f"it took {took:.1f} s, {took / _one_picture_s():.0f} times what a large picture takes"
    return f"a process used {_peak_mib():.0f} MiB" if _peak_mib() > MOST_MIB else None


def _own(name: str) -> Callable[[Path], str | None]:
    def attempt(folder: Path) -> str | None:
        content = FILES[name]()
        (folder / "in").mkdir()
        (folder / "in/bad").write_bytes(content)
        (folder / "in/good.png").write_bytes(picture())
        dataset = Dataset(sources=(FolderSource(kind="folder", path=str(folder / "in")),), trigger="x")
        began = _computed_s()
        gather(dataset, folder / "out")
        fit_dataset(Fit(size_px=64), folder / "out", folder / "out/fitted")
        good = [row["name"] for row in records.read_jsonl(folder / "out/fitted/fit.jsonl")]
        return _cost(began) or (None if "good.png" in good else "the good picture was lost")

    return attempt


def _searched(name: str) -> Callable[[Path], str | None]:
    def attempt(folder: Path) -> str | None:
        content = FILES[name]()
        began = _computed_s()
        with contextlib.suppress(DataError):
            examine(content, "x", Scrape(deadline_s=1.0))
        return _cost(began)

    return attempt


for _name in FILES:
    attack("decode", f"{_name}, in a folder")(_own(_name))
    attack("decode", f"{_name}, found by a search")(_searched(_name))


@attack("decode", "a slow picture within the cap of scans")
def _slow(folder: Path) -> str | None:
    content = many_scans(80, 5000)
    assert scans_of(content) <= 100
    began = _computed_s()
    try:
        examine(content, "x", Scrape(deadline_s=0.5))
        return "it was decoded, so this attack shows nothing"
    except DataError as error:
        if "not decoded after 0.5 s" not in str(error):
            return f"refused for another reason: {error}"
    examine(picture(), "the next one", Scrape())
    return _cost(began)


@attack("decode", "a decoder that dies")
def _dies(folder: Path) -> str | None:
    examine(picture(), "x", None)
    pool = decoder._the_pool()
    for worker in pool._all:
        worker._process.kill()
    try:
        open_picture(picture(), "x")
        return "nobody noticed"
    except DataError as error:
        if "broke (SIGKILL)" not in str(error):
            return f"refused for another reason: {error}"
    open_picture(picture(), "the next one")
    return None
