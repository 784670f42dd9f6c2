"""glibc keeps what a small base frees, and gives back what a large one frees."""

import resource
import sys
from collections.abc import Callable
from multiprocessing import get_context

import pytest
import torch
from helpers import TINY

from sdlora.cpu import allocator
from sdlora.models import load_model

BLOCK = 3 * 2**17  # numbers in 1.5 MiB: less than a huge page
PAGES = 4 * BLOCK // resource.getpagesize()
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's own options")


def faults(work: Callable[[], object]) -> int:
    """Pages that the kernel had to find for a second run of some work."""
    work()
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


def twenty_blocks() -> None:
    for _ in range(20):
        torch.ones(BLOCK)


def measured() -> dict[str, int]:
    """Faults of both ways, in a process whose heap no other test has filled."""
    torch.set_num_threads(1)
    allocator.give_large_blocks_back()
    found = {"blocks given back": faults(twenty_blocks)}
    allocator.keep_freed_blocks()
    found["blocks kept"] = faults(twenty_blocks)
    allocator.give_large_blocks_back()
    model = load_model(TINY, "cpu")
    told = model.encode_prompts(["captain"] * 8)

    @torch.no_grad()
    def predict() -> None:
        model.predict(torch.zeros(8, 4, 16, 16), torch.full((8,), 500), told)

    predict()
    found["passes kept"] = faults(predict)
    allocator.give_large_blocks_back()
    found["passes given back"] = faults(predict)
    return found


def test_the_kernel_is_asked_for_pages_again_and_again_or_once() -> None:
    with get_context("spawn").Pool(1) as pool:
        found = pool.apply(measured)
    assert found["blocks given back"] >= 19 * PAGES
    assert found["blocks kept"] <= PAGES
    assert 10 * found["passes kept"] < found["passes given back"]  # the embedded base, as it is loaded
