"""What glibc does with freed memory: a large base needs it back at once, a small one is faster when it is kept."""

import ctypes
import sys

# malloc.h: options of mallopt; sizes in bytes
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_TRIM_DEFAULT, _LARGE_BLOCK = 128 * 2**10, 2**20
_TRIM_NEVER, _LARGEST_BLOCK = 2**30, 32 * 2**20


def give_large_blocks_back() -> None:
    """Have blocks of 1 MiB and more taken from the kernel, and given back when they are freed.

    By default glibc keeps blocks of up to 32 MiB in its heap after the first one is freed; SD 1.5's
    activations tear that heap, and a step at 512 px peaks 1 GiB above the tensors it has. So do SDXL's weights, which
    are converted one by one: of fp32 files, 4 GiB stayed when all were on their way to a card.
    """
    _set({_M_MMAP_THRESHOLD: _LARGE_BLOCK, _M_TRIM_THRESHOLD: _TRIM_DEFAULT})


def keep_freed_blocks() -> None:
    """Have freed blocks of up to 32 MiB kept in the heap, all of them.

    The embedded base's activations are small, and its arithmetic is quick: what the kernel takes to clear their
    pages anew at every operation is a seventh of a step at batch 4.
    """
    _set({_M_MMAP_THRESHOLD: _LARGEST_BLOCK, _M_TRIM_THRESHOLD: _TRIM_NEVER})


def _set(options: dict[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None  # musl has none
    if mallopt is not None:
        for option, value in options.items():
            mallopt(option, value)
