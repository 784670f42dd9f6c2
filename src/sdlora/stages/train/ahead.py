"""Batches are drawn while the device works, and go to it in one copy."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

DEPTH = 4  # how many are drawn before they are asked for: a slow draw now and then is not waited for
ALIGNMENT = 16  # bytes: tensors of every type may begin there

T = TypeVar("T")


class Ahead(Generic[T]):
    """The results of a function of consecutive numbers, worked out in a thread before they are asked for.

    The function must depend on its number alone, so nothing changes but the time. Its error is raised where its
    result is asked for.
    """

    def __init__(self, work: Callable[[int], T], first: int, end: int) -> None:
        """Begin with number `first`; `end` is the first that nobody will ask for."""
        self._work, self._next, self._end = work, first, end
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="draws")
        self._waiting: deque[tuple[int, Future[T]]] = deque()
        self._fill()

    def __call__(self, number: int) -> T:
        """The result of `number`, which must be the one after the last.

        Raises:
            ValueError: If it is another.
        """
        expected, future = self._waiting.popleft() if self._waiting else (self._next, None)
        if future is None or number != expected:
            raise ValueError(f"draw {number} was asked for, but {expected} of {self._end} comes next")
        self._fill()
        return future.result()

    def _fill(self) -> None:
        while len(self._waiting) < DEPTH and self._next < self._end:
            self._waiting.append((self._next, self._pool.submit(self._work, self._next)))
            self._next += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def packed(tensors: Sequence[Tensor], pinned: bool) -> Tensor:
    """Tensors side by side as bytes, so that one copy takes them all to a device.

    Args:
        tensors: On the CPU; one that comes twice takes its place once.
        pinned: In memory that a GPU reads while everything else goes on.
    """
    places, size = _places(tensors)
    memory = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    for tensor, place in zip(tensors, places, strict=True):
        _at(memory, place, tensor).copy_(tensor)
    return memory


def unpacked(memory: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that `packed` put side by side, as views of a copy of its memory."""
    places, _ = _places(like)
    return [_at(memory, place, tensor) for tensor, place in zip(like, places, strict=True)]


def _places(tensors: Sequence[Tensor]) -> tuple[list[int], int]:
    """Where each tensor begins, and where the last ends, bytes."""
    found: dict[int, int] = {}
    end = 0
    for tensor in tensors:
        if id(tensor) not in found:
            found[id(tensor)] = end
            end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    return [found[id(tensor)] for tensor in tensors], end


def _at(memory: Tensor, place: int, like: Tensor) -> Tensor:
    return memory[place : place + like.nbytes].view(like.dtype).view(like.shape)
