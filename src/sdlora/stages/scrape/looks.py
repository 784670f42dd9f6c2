"""The looks of many pictures, and which of them a new one shows again."""

import numpy as np

from sdlora.stages.scrape.verify import Look

WORDS = 2  # of 64 bits in a dHash
ROOM = 1024


class Looks:
    """Looks by place. All are compared at once: among 100,000 that takes a fraction of decoding the picture."""

    def __init__(self) -> None:
        self._hashes = np.empty((WORDS, ROOM), np.uint64)
        self._looks: list[Look] = []

    def append(self, look: Look) -> None:
        """Put one at the next place."""
        if len(self._looks) == self._hashes.shape[1]:
            self._hashes = np.concatenate([self._hashes, np.empty_like(self._hashes)], axis=1)
        self._hashes[:, len(self._looks)] = _words(look)
        self._looks.append(look)

    def replace(self, place: int, look: Look) -> None:
        """Put another at a place."""
        self._hashes[:, place] = _words(look)
        self._looks[place] = look

    def same_as(self, look: Look, bits: int) -> list[int]:
        """The places of those that show the same picture, as `Look.same_as` says, in order."""
        among = self._hashes[:, : len(self._looks)]
        differ = np.bitwise_count(among ^ _words(look)[:, None])
        near = np.flatnonzero(differ[0] + differ[1] <= bits)
        return [int(place) for place in near if look.same_as(self._looks[place], bits)]


def _words(look: Look) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.frombuffer(bytes.fromhex(look.dhash), np.uint64)
