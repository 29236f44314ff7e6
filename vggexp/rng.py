"""Derived randomness: every draw is a function of the seed and of what it is for, so nothing random is stored."""

import hashlib

import torch


def sub_seed(seed: int, *words: object) -> int:
    """A 63-bit seed for one purpose, for instance sub_seed(0, "order", epoch)."""
    digest = hashlib.sha256(repr((seed, *words)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *words: object) -> torch.Generator:
    """A generator on the CPU: draws are made there and moved, so they are the same on every device."""
    return torch.Generator().manual_seed(sub_seed(seed, *words))


def seed_step(seed: int, *words: object) -> None:
    """Seeds what dropout draws from, on the CPU and on the current accelerator."""
    torch.manual_seed(sub_seed(seed, *words))
