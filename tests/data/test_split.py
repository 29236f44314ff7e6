"""Compares the shares of the classes with arithmetic by hand, and checks any labels."""

import pytest
import torch
from hypothesis import given, settings, strategies
from torch import Tensor

from vggexp.data.split import stratified_sample, train_val_split

LABELS = strategies.lists(strategies.integers(0, 6), min_size=1, max_size=60)


def class_counts(labels: Tensor, chosen: Tensor) -> list[int]:
    return torch.bincount(labels[chosen], minlength=int(labels.max()) + 1).tolist()


def labels_of_sizes(*sizes: int) -> Tensor:
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


@pytest.mark.parametrize(
    ("sizes", "count", "spare", "expected"),
    [
        ((10, 10, 10), 6, 0, [2, 2, 2]),
        ((10, 10, 10), 7, 0, [3, 2, 2]),
        ((30, 20, 10), 10, 0, [5, 3, 2]),  # 5.0, 3.3, 1.7
        ((97, 1, 2), 10, 0, [8, 1, 1]),  # 9.7, 0.1, 0.2: no class left out
        ((97, 1, 2), 10, 1, [9, 0, 1]),  # no class emptied either
        ((97, 1, 2), 2, 0, [2, 0, 0]),  # not enough for all
        ((4, 1), 5, 1, [4, 1]),  # all images
        ((3, 0, 3), 4, 0, [2, 0, 2]),
        ((3, 3), 99, 0, [3, 3]),
        ((3, 3), 0, 0, [0, 0]),
    ],
)
def test_shares(sizes: tuple[int, ...], count: int, spare: int, expected: list[int]) -> None:
    labels = labels_of_sizes(*sizes)
    assert class_counts(labels, stratified_sample(labels, count, 0, "a test", spare)) == expected


@settings(max_examples=100, deadline=None)
@given(LABELS, strategies.integers(0, 70), strategies.integers(0, 2**63 - 1))
def test_any_choice(values: list[int], count: int, seed: int) -> None:
    labels = torch.tensor(values)
    chosen = stratified_sample(labels, count, seed, "a test")
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert len(chosen) == min(count, len(values))
    assert torch.equal(chosen, stratified_sample(labels, count, seed, "a test"))
    if count >= len(set(values)):
        assert set(labels[chosen].tolist()) == set(values)


@settings(max_examples=100, deadline=None)
@given(LABELS, strategies.floats(0, 0.99))
def test_any_split(values: list[int], fraction: float) -> None:
    labels = torch.tensor(values)
    train, val = train_val_split(labels, fraction, 3)
    assert sorted(train.tolist() + val.tolist()) == list(range(len(values)))
    least = 1 if fraction > 0 and len(values) > 1 else 0
    assert len(val) == max(round(len(values) * fraction), least)
    if len(val) <= len(values) - len(set(values)):
        assert set(labels[train].tolist()) == set(values)


def test_the_seed_decides() -> None:
    labels = labels_of_sizes(50, 50)
    _, val = train_val_split(labels, 0.2, seed=1)
    _, again = train_val_split(labels, 0.2, seed=1)
    _, other_seed = train_val_split(labels, 0.2, seed=2)
    assert torch.equal(val, again)
    assert not torch.equal(val, other_seed)


def test_the_purpose_decides() -> None:
    labels = labels_of_sizes(50, 50)
    limit = stratified_sample(labels, 20, 1, "limit")
    assert not torch.equal(limit, stratified_sample(labels, 20, 1, "validation"))


@pytest.mark.catalog
def test_every_image_is_equally_likely() -> None:
    labels = labels_of_sizes(6, 3)
    chosen = torch.cat([stratified_sample(labels, 3, seed, "a test") for seed in range(600)])
    for count in torch.bincount(chosen, minlength=9).tolist():
        assert abs(count - 200) < 60  # the standard deviation is 12
