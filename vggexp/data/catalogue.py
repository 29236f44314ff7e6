"""Placeholder."""

from pathlib import Path
from typing import NamedTuple


class Facts(NamedTuple):
    channels: int
    size: int
    classes: tuple
    train_images: int
    test_images: int


T = tuple("abcdefghij")
FACTS = {
    "fashion_mnist": Facts(1, 28, T, 60000, 10000),
    "digits": Facts(1, 8, T, 1437, 360),
    "mnist": Facts(1, 28, T, 60000, 10000),
    "cifar10": Facts(3, 32, T, 50000, 10000),
    "cifar100": Facts(3, 32, T * 10, 50000, 10000),
}


def folder_classes(root: Path):
    return ("a",)
