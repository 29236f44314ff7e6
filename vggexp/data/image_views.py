"""The copies of an image over whose softmax a prediction is averaged: mirrored and shifted.

Needs no torch: the methods of a tensor are enough.
Sources: Krizhevsky et al. 2012, "ImageNet classification with deep convolutional neural networks",
section 4.1, for shifted windows; Simonyan and Zisserman 2015, arXiv:1409.1556, section 3.2, for
mirror images.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

FLIP_KEY = "train.test_flip"
SHIFT_KEY = "train.test_shift"


@dataclass(frozen=True)
class ImageViews:
    """What is seen of an image: by default the image alone.

    Args:
        flip: whether each copy is mirrored as well.
        shift: pixels by which the image is also moved up, down, left and right; 0: not moved.
    """

    flip: bool = False
    shift: int = 0

    @property
    def count(self) -> int:
        """The number of copies."""
        mirrors = 2 if self.flip else 1
        places = 5 if self.shift else 1
        return mirrors * places

    @property
    def description(self) -> str:
        """Such as `mirror images and shifts by 1 px`; empty for the image alone."""
        return " and ".join(name for name, _, _ in self._parts())

    @property
    def suffix(self) -> str:
        """The description behind ` with `; empty for the image alone."""
        return f" with {self.description}" if self.description else ""

    @property
    def keys(self) -> list[str]:
        """The keys with which a run tests so."""
        return [key for _, key, _ in self._parts()]

    @property
    def flags(self) -> str:
        """The flags with which `vggexp.evaluate` evaluates so."""
        return " ".join(flag for _, _, flag in self._parts())

    def _parts(self) -> Iterator[tuple[str, str, str]]:
        if self.flip:
            yield "mirror images", FLIP_KEY, "--flip"
        if self.shift:
            yield f"shifts by {self.shift} px", SHIFT_KEY, f"--shift {self.shift}"

    def make(self, images: "Tensor", black: "Tensor | int" = 0) -> "Iterator[Tensor]":
        """Yields the images, [B, C, H, W], then their other copies.

        Args:
            images: at least `shift` pixels high and wide.
            black: the value of the pixels that come in at a border; [C, 1, 1], or one number.
        """
        for placed in self._places(images, black):
            yield placed
            if self.flip:
                yield placed.flip(-1)

    def _places(self, images: "Tensor", black: "Tensor | int") -> "Iterator[Tensor]":
        yield images
        if not self.shift:
            return
        for dim in (-2, -1):
            for step in (self.shift, -self.shift):
                kept = images.shape[dim] - self.shift
                moved = images.clone()  # keeps the memory format, which roll does not on CUDA
                moved[:] = black
                moved.narrow(dim, max(step, 0), kept)[:] = images.narrow(dim, max(-step, 0), kept)
                yield moved


def recorded_views(keys: Mapping[str, Any]) -> ImageViews:
    """Returns the views of a run's own test, from its configuration by dotted keys."""
    return ImageViews(bool(keys.get(FLIP_KEY)), keys.get(SHIFT_KEY) or 0)
