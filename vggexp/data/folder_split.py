"""Chooses the test images of a folder without a test folder."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path


def choose_test_images(
    folder: Path, paths: Sequence[Path], labels: Sequence[int], fraction: float
) -> list[bool]:
    """Returns for each image whether it is for the test.

    Of each class these are the images with the lowest SHA-256 of their path below `folder`. The
    choice is therefore the same on every machine and with every seed.
    """
    by_label: dict[int, list[int]] = {}
    for number, label in enumerate(labels):
        by_label.setdefault(label, []).append(number)
    chosen: set[int] = set()
    for numbers in by_label.values():
        numbers.sort(key=lambda number: _path_sha256(folder, paths[number]))
        chosen.update(numbers[: count_test_images(len(numbers), fraction)])
    return [number in chosen for number in range(len(labels))]


def count_test_images(images: int, fraction: float) -> int:
    """Returns how many images of a class are for the test: at least one, and never all."""
    return min(max(1, round(fraction * images)), images - 1)


def _path_sha256(folder: Path, path: Path) -> bytes:
    return hashlib.sha256(os.fsencode(path.relative_to(folder))).digest()
