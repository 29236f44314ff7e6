"""What a network says of a picture that it sees several times: in the middle, in crops, or whole; mirrored; larger.

Each view gives a soft-max, and the answer is their mean. Source: Simonyan and Zisserman 2015, arXiv:1409.1556,
sections 3.2 and 4.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vggexp.data.loaders import MultiScaleBatch, SameShapeImages
from vggexp.data.transforms import Preprocess, crop, crop_grid
from vggexp.models.dense import to_fully_convolutional

GRID = {"single": 1, "crops": 5}  # windows along each side
WAYS = {"single": ["single"], "dense": ["dense"], "crops": ["crops"], "both": ["dense", "crops"]}

View = tuple[
    int, list[SameShapeImages]
]  # how many views it stands for; what the network is shown of the whole batch


def views(mode: str, scales: int, flip: bool) -> int:
    """How many times each picture is seen."""
    return sum(GRID.get(way, 1) ** 2 for way in WAYS[mode]) * scales * (1 + flip)


@dataclass(frozen=True, eq=False)
class MultiViewPredictor:
    """A network in eval mode and how it is shown pictures.

    net: [N, C, size, size] -> logits. batch_size: of pictures of `preprocess.size`; of larger ones fewer are taken at a
    time, so that a pass needs no more memory.
    """

    model: nn.Sequential
    preprocess: Preprocess
    autocast: Callable[[], AbstractContextManager]
    batch_size: int
    flip: bool

    @torch.inference_mode()
    def probabilities(self, batches: Iterable[MultiScaleBatch], mode: str) -> tuple[Tensor, Tensor]:
        """float64 [N, K] and labels [N], on the CPU. mode: single, dense, crops, or both: the mean of the last two."""
        nets = {
            way: to_fully_convolutional(self.model) if way == "dense" else self.model
            for way in WAYS[mode]
        }
        scores = []
        labels = []
        for scales, truth in batches:
            each = [self._mean(model, self._glances(scales, way)) for way, model in nets.items()]
            scores.append(torch.stack(each).mean(0))
            labels.append(truth.cpu())
        return torch.cat(scores), torch.cat(labels)

    def _glances(self, scales: Sequence[list[SameShapeImages]], way: str) -> Iterator[View]:
        for groups in scales:
            if way == "dense":
                yield 1, groups
            else:
                yield from crop_views(groups, self.preprocess.size, GRID[way])

    def _mean(self, model: nn.Module, glances: Iterable[View]) -> Tensor:
        """Of the soft-max of all glances: float64 [B, K]."""
        counts = []
        logits = []
        for count, groups in glances:
            for mirrored in (False, True) if self.flip else (False,):
                counts.append(count)
                logits.append(self._logits(model, groups, mirrored))
        scores = (
            torch.stack(logits).cpu().softmax(-1).double()
        )  # one wait for the device, not one a glance
        shares = torch.tensor(counts, dtype=torch.float64) / sum(counts)
        return (shares[:, None, None] * scores).sum(0)

    def _logits(
        self, model: nn.Module, groups: Sequence[SameShapeImages], mirrored: bool
    ) -> Tensor:
        """fp32 [B, K]."""
        return restore_order(
            groups, [self._forward(model, group.images, mirrored) for group in groups]
        )

    def _forward(self, model: nn.Module, images: Tensor, mirrored: bool) -> Tensor:
        pixels = images.shape[-2] * images.shape[-1]
        parts = []
        for part in images.split(max(1, self.batch_size * self.preprocess.size**2 // pixels)):
            with self.autocast():
                parts.append(
                    model(self.preprocess.finish(part.flip(-1) if mirrored else part)).float()
                )
        return torch.cat(parts)


def crop_views(groups: Sequence[SameShapeImages], size: int, grid: int) -> Iterator[View]:
    """grid x grid windows of `size` over each picture; those that are the same place in all pictures count together."""
    sides = [group.images.shape[-2:] for group in groups]
    windows = [crop_grid(height, width, size, grid) for height, width in sides]
    for chosen, count in Counter(zip(*windows, strict=True)).items():
        cuts = [
            crop(group.images, window, size) for group, window in zip(groups, chosen, strict=True)
        ]
        images = restore_order(groups, cuts)
        yield count, [SameShapeImages(list(range(len(images))), images)]


def restore_order(groups: Sequence[SameShapeImages], rows: Sequence[Tensor]) -> Tensor:
    """What was found for the pictures of each group, in the order of the batch."""
    if len(groups) == 1:
        return rows[0]
    places = torch.tensor(
        [place for group in groups for place in group.places], device=rows[0].device
    )
    return torch.cat(list(rows))[places.argsort()]
