"""Derived randomness: each draw is a function of the seed and of its purpose, so none is stored."""

import hashlib

import torch


def sub_seed(seed: int, *keys: object) -> int:
    """Returns a 63-bit seed for one purpose, for instance sub_seed(0, "order", epoch)."""
    text = repr((seed, *keys))
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *keys: object) -> torch.Generator:
    """Returns a CPU generator. Draws are made on the CPU and moved, so all devices get the same."""
    return torch.Generator().manual_seed(sub_seed(seed, *keys))


def seed_step(seed: int, *keys: object) -> None:
    """Seeds the draws of dropout, on the CPU and on the current accelerator."""
    step_seed = sub_seed(seed, *keys)
    # torch.manual_seed also formats the call stack, for accelerators that may be used later.
    torch.default_generator.manual_seed(step_seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(step_seed)
    torch.mps.manual_seed(step_seed)  # does nothing without MPS
