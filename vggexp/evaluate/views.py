"""Predicts each image from several views: crops or the whole image, at several scales.

Each of them may be mirrored and shifted as well.

The network computes a softmax for each view, and the prediction is the mean of all views.
Source: Simonyan and Zisserman 2015, arXiv:1409.1556, sections 3.2 and 4.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vggexp.data.image_views import ImageViews
from vggexp.data.loaders import MultiScaleBatch, SameShapeImages
from vggexp.data.transforms import Preprocess, crop, crop_grid
from vggexp.models.dense import to_fully_convolutional
from vggexp.training.step import Autocast

ImageGroups = list[SameShapeImages]  # the images of one batch, grouped by shape

CROPS_PER_SIDE = {"single": 1, "crops": 5}
METHODS = {
    "single": ["single"],
    "dense": ["dense"],
    "crops": ["crops"],
    "both": ["dense", "crops"],
}  # of each --mode


class View(NamedTuple):
    """Input of the network for one batch.

    Args:
        copies: number of identical views that this view stands for.
        groups: the images of the whole batch.
    """

    copies: int
    groups: ImageGroups


def count_views(mode: str, scale_count: int, image_views: ImageViews) -> int:
    """Returns how many times the network sees each image."""
    count = 0
    for method in METHODS[mode]:
        count += CROPS_PER_SIDE.get(method, 1) ** 2
    return count * scale_count * image_views.count


@dataclass(frozen=True, eq=False)
class MultiViewPredictor:
    """Averages the predictions of a network over several views of each image.

    Args:
        model: in eval mode; maps [N, C, size, size] to logits.
        preprocess: normalization, and the training size `preprocess.size`.
        batch_size: number of images of the training size in one pass. A pass takes fewer larger
            images, so that it needs no more memory.
        image_views: the copies of each crop, or of the whole image, that are views as well.
    """

    model: nn.Sequential
    preprocess: Preprocess
    autocast: Autocast
    batch_size: int
    image_views: ImageViews

    @torch.inference_mode()
    def predict(self, batches: Iterable[MultiScaleBatch], mode: str) -> tuple[Tensor, Tensor]:
        """Returns probabilities, float64 [N, K], and labels, int64 [N], on the CPU.

        Args:
            mode: single, dense, crops, or both (the mean of dense and crops).
        """
        models: dict[str, nn.Module] = {}
        for method in METHODS[mode]:
            if method == "dense":
                models[method] = to_fully_convolutional(self.model)
            else:
                models[method] = self.model
        probs = []
        labels = []
        for scales, batch_labels in batches:
            method_probs = []
            for method, model in models.items():
                views = self._views(scales, method)
                method_probs.append(self._mean_probs(model, views))
            probs.append(torch.stack(method_probs).mean(0))
            labels.append(batch_labels.cpu())
        return torch.cat(probs), torch.cat(labels)

    def _views(self, scales: Sequence[ImageGroups], method: str) -> Iterator[View]:
        for groups in scales:
            if method == "dense":
                yield View(1, groups)
            else:
                yield from crop_views(groups, self.preprocess.size, CROPS_PER_SIDE[method])

    def _mean_probs(self, model: nn.Module, views: Iterable[View]) -> Tensor:
        """Returns the mean of the softmax of all views, float64 [B, K]."""
        copies = []
        logits = []
        for view in views:
            copies.append(view.copies)
            logits.append(self._logits(model, view.groups))
        # The host waits for the device once, not once a view.
        probs = torch.stack(logits).cpu().softmax(-1).double().mean(2)
        weights = torch.tensor(copies, dtype=torch.float64) / sum(copies)
        weighted = weights[:, None, None] * probs
        return weighted.sum(0)

    def _logits(self, model: nn.Module, groups: ImageGroups) -> Tensor:
        """Returns fp32 [B, copies, K] in the order of the batch."""
        logits = [self._group_logits(model, group.images) for group in groups]
        return restore_order(groups, logits)

    def _group_logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """Returns fp32 [N, copies, K] of images of one shape."""
        height, width = images.shape[-2:]
        pixels_per_pass = self.batch_size * self.preprocess.size**2
        images_per_pass = max(1, pixels_per_pass // (height * width))
        logits = []
        for part in images.split(images_per_pass):
            outputs = []
            for copy in self.image_views.make(part):
                with self.autocast():
                    outputs.append(model(self.preprocess.normalize(copy)).float())
            logits.append(torch.stack(outputs, 1))
        return torch.cat(logits)


def crop_views(groups: ImageGroups, size: int, grid: int) -> Iterator[View]:
    """Yields grid x grid crops of `size` pixels over each image.

    Crops that are equal in all images of the batch are one view, with their number as its `copies`.
    """
    group_windows = []
    for group in groups:
        height, width = group.images.shape[-2:]
        group_windows.append(crop_grid(height, width, size, grid))
    # one window for each group, with the number of times that these windows occur together
    window_counts = Counter(zip(*group_windows, strict=True))
    for windows, copies in window_counts.items():
        crops = []
        for group, window in zip(groups, windows, strict=True):
            crops.append(crop(group.images, window, size))
        images = restore_order(groups, crops)
        indices = list(range(len(images)))
        yield View(copies, [SameShapeImages(indices, images)])


def restore_order(groups: ImageGroups, rows: Sequence[Tensor]) -> Tensor:
    """Concatenates the rows of each group's images in the order of the batch."""
    if len(groups) == 1:
        return rows[0]
    indices: list[int] = []
    for group in groups:
        indices += group.indices
    order = torch.tensor(indices, device=rows[0].device).argsort()
    in_group_order = torch.cat(list(rows))
    return in_group_order[order]
