"""How training images are changed at random, and in which epochs."""

from typing import NamedTuple


class Augment(NamedTuple):
    """Random changes of training images; all are off by default.

    Sources: He et al. 2016 (arXiv:1512.03385), section 4.2, for `crop`; Simonyan and Zisserman
    2015 (arXiv:1409.1556), section 3.1, for `scale`; Krizhevsky et al. 2012, section 4.1, for
    `color`, in standard deviations as in its author's program (see `image_stats.color_basis`);
    Zhong et al. 2020 (arXiv:1708.04896) for `erase`, in torchvision's form (see
    `transforms.erase_boxes`); Z. He et al. 2019 (arXiv:1909.09148) for last epochs that change
    less.
    """

    flip: float = 0  # probability
    crop: int = 0  # largest shift, in pixels of the output
    scale: tuple[float, ...] | None = None  # (low, high) >= 1: shorter side over size
    color: float = 0  # standard deviation, in units of `image_stats.color_basis`
    erase: float = 0  # probability
    flip_only_from: int | None = None  # epoch, counted from 0, from which only flips are left

    def in_epoch(self, epoch: int) -> "Augment":
        """Returns the changes in an epoch, counted from 0."""
        if self.flip_only_from is not None and epoch >= self.flip_only_from:
            return Augment(flip=self.flip)
        return self._replace(flip_only_from=None)  # so that any() says whether images change


NO_AUGMENTATION = Augment()
