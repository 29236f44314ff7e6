"""Chooses the images that a run uses and holds out: equal shares of the classes, by the seed."""

import torch
from torch import Tensor

from vggexp.rng import generator


def stratified_sample(
    labels: Tensor,
    count: int,
    seed: int,
    purpose: str,
    spare: int = 0,
) -> Tensor:
    """Chooses random images; each class has its share, as near as whole images allow.

    Every class is represented if `count` allows.

    Args:
        labels: int64 [N].
        purpose: a name; the choice is a function of (seed, purpose).
        spare: images that stay unchosen in each class, if `count` allows.

    Returns:
        Sorted indices, int64 [min(count, N)].
    """
    count = min(count, len(labels))
    if count == 0:
        return torch.empty(0, dtype=torch.int64)
    sizes = torch.bincount(labels)
    shares = _class_shares(sizes, count, spare)
    shuffled = torch.randperm(len(labels), generator=generator(seed, purpose))
    order = torch.argsort(labels[shuffled], stable=True)
    by_class = shuffled[order]
    starts = sizes.cumsum(0) - sizes
    index_in_class = torch.arange(len(labels))
    index_in_class = index_in_class - starts.repeat_interleave(sizes)
    chosen = index_in_class < shares.repeat_interleave(sizes)
    return by_class[chosen].sort().values


def train_val_split(labels: Tensor, val_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Returns sorted indices of the training images and of the validation images.

    A positive fraction of two or more images gives at least one validation image.

    Args:
        labels: int64 [N].
    """
    count = round(len(labels) * val_fraction)
    if val_fraction > 0 and len(labels) > 1:
        count = max(count, 1)
    val = stratified_sample(labels, count, seed, "validation", spare=1)
    is_train = torch.ones(len(labels), dtype=torch.bool)
    is_train[val] = False
    train = is_train.nonzero().flatten()
    return train, val


def _class_shares(sizes: Tensor, count: int, spare: int) -> Tensor:
    """Returns how many images of each class are chosen, by largest remainders (Hamilton's method).

    Each share is within what its class can give. Ties go to the first class.
    """
    most = (sizes - spare).clamp(min=0)
    if int(most.sum()) < count:
        most = sizes
    least = most.clamp(max=1)
    if int(least.sum()) > count:
        least = torch.zeros_like(sizes)
    exact = sizes.double() * count / sizes.sum()
    shares = exact.floor().long()
    shares = shares.clamp(least, most)
    missing = count - int(shares.sum())
    while missing:
        step = 1 if missing > 0 else -1
        remainders = (exact - shares) * step
        order = torch.argsort(remainders, descending=True, stable=True)
        changeable = shares < most if step > 0 else shares > least
        order = order[changeable[order]]
        shares[order[: abs(missing)]] += step
        missing = count - int(shares.sum())
    return shares
