"""glibc keeps what a small base frees, and gives back what a large one frees."""

import ctypes
from multiprocessing import get_context

import pytest
import torch
from helpers import TINY
from training import examples, settings

from sdlora.config.params import Flip
from sdlora.cpu import allocator
from sdlora.models import load_model
from sdlora.models.sd import StableDiffusion
from sdlora.stages.train.run import prepare

BLOCK_BYTES = 31 * 2**20  # less than the largest that the heap takes; nothing here leaves such a hole in it
LIBC = ctypes.CDLL(None)
pytestmark = pytest.mark.skipif(not hasattr(LIBC, "mallinfo2"), reason="glibc 2.33 tells what it has of the kernel")


class Told(ctypes.Structure):
    """malloc.h: struct mallinfo2."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
                     "keepcost")
    )  # fmt: skip


def told() -> Told:
    LIBC.mallinfo2.restype = Told
    found: Told = LIBC.mallinfo2()
    return found


def blocks_of_their_own() -> int:
    """How many of ten new blocks are not the heap's: they go back to the kernel one by one when they are freed."""
    before = told().hblks
    held = [torch.empty(BLOCK_BYTES, dtype=torch.uint8) for _ in range(10)]
    found = int(told().hblks - before)
    del held
    assert told().hblks == before
    return found


def measured() -> dict[str, int]:
    """In a process whose heap no other test has filled."""
    torch.set_num_threads(1)
    allocator.give_large_blocks_back()
    found = {"given back": blocks_of_their_own()}
    prepare(settings(gradient_checkpointing=True), Flip(), TINY, examples(1))
    found["memory first"] = blocks_of_their_own()

    load = StableDiffusion._load
    StableDiffusion._load = lambda self, *parts: (found.update(reading=blocks_of_their_own()), load(self, *parts))[1]  # type: ignore[method-assign]
    load_model(TINY, "cpu")
    found["the embedded base"] = blocks_of_their_own()
    found["heap"] = told().arena
    found["again"] = blocks_of_their_own()
    found["heap grew by"] = told().arena - found["heap"]
    return found


@pytest.mark.workflow
def test_what_a_small_base_frees_is_kept_and_what_a_large_one_frees_is_given_back() -> None:
    with get_context("spawn").Pool(1) as pool:
        found = pool.apply(measured)
    # while weights are read, nobody knows yet how large the base is
    assert {name: found[name] for name in ("given back", "memory first", "reading")} == {
        "given back": 10, "memory first": 10, "reading": 10,
    }  # fmt: skip
    assert found["the embedded base"] == found["again"] == 0
    assert found["heap"] >= 10 * BLOCK_BYTES, "freed blocks are still the heap's"
    assert found["heap grew by"] <= BLOCK_BYTES, "and nearly all of them serve again"
