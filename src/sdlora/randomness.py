"""Randomness as a function of (seed, step, sample): that is what makes resume exact."""

import hashlib

import torch


def seed_of(*parts: object) -> int:
    """A 63-bit seed from anything that has a stable text."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: object) -> torch.Generator:
    """A CPU generator seeded by `parts`."""
    return torch.Generator().manual_seed(seed_of(*parts))


def uniform(*parts: object) -> float:
    """A number in [0, 1) that depends on `parts` alone."""
    return seed_of(*parts) / 2**63
