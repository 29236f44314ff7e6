"""Which images a run uses and which it holds out: the classes in equal shares, the choice a function of the seed."""

import torch
from torch import Tensor

from vggexp.rng import generator


def stratified_sample(
    labels: Tensor, count: int, seed: int, purpose: str, spare: int = 0
) -> Tensor:
    """Sorted indices, int64 [min(count, N)], of random images; each class has its share, as near as whole images allow.

    labels: int64 [N]. Each class is chosen from, and keeps `spare` images that are not chosen, wherever count allows.
    """
    count = min(count, len(labels))
    if count == 0:
        return torch.empty(0, dtype=torch.int64)
    sizes = torch.bincount(labels)
    shares = _shares(sizes, count, spare)
    shuffled = torch.randperm(len(labels), generator=generator(seed, purpose))
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    starts = sizes.cumsum(0) - sizes
    place = torch.arange(len(labels)) - starts.repeat_interleave(
        sizes
    )  # of each image within its class
    return by_class[place < shares.repeat_interleave(sizes)].sort().values


def train_val_split(labels: Tensor, val_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Sorted indices of the training and of the validation images, of which there is one at least where asked for.

    labels: int64 [N].
    """
    count = max(val_fraction > 0 and len(labels) > 1, round(len(labels) * val_fraction))
    val = stratified_sample(labels, count, seed, "validation", spare=1)
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[val] = False
    return rest.nonzero().flatten(), val


def _shares(sizes: Tensor, count: int, spare: int) -> Tensor:
    """Largest remainders (Hamilton's method), each share within what its class can give; ties go to the first."""
    most = (sizes - spare).clamp(min=0)
    if int(most.sum()) < count:
        most = sizes
    least = most.clamp(max=1)
    if int(least.sum()) > count:
        least = torch.zeros_like(sizes)
    exact = sizes.double() * count / sizes.sum()
    shares = exact.floor().long().clamp(least, most)
    while missing := count - int(shares.sum()):
        step = 1 if missing > 0 else -1
        order = torch.argsort((exact - shares) * step, descending=True, stable=True)
        free = (shares < most) if step > 0 else (shares > least)
        shares[order[free[order]][: abs(missing)]] += step
    return shares
