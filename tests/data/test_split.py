"""Shares by class against arithmetic done by hand, and what must hold for any labels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor

from vggexp.data.split import stratified_sample, train_val_split


def shares(labels: Tensor, chosen: Tensor) -> list[int]:
    return torch.bincount(labels[chosen], minlength=int(labels.max()) + 1).tolist()


def of_sizes(*sizes: int) -> Tensor:
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


@pytest.mark.parametrize(
    ("sizes", "count", "spare", "wanted"),
    [
        ((10, 10, 10), 6, 0, [2, 2, 2]),
        ((10, 10, 10), 7, 0, [3, 2, 2]),
        ((30, 20, 10), 10, 0, [5, 3, 2]),  # 5.0, 3.3, 1.7
        ((97, 1, 2), 10, 0, [8, 1, 1]),  # 9.7, 0.1, 0.2: none left out
        ((97, 1, 2), 10, 1, [9, 0, 1]),  # none emptied either
        ((97, 1, 2), 2, 0, [2, 0, 0]),  # not enough for all
        ((4, 1), 5, 1, [4, 1]),  # all are wanted
        ((3, 0, 3), 4, 0, [2, 0, 2]),
        ((3, 3), 99, 0, [3, 3]),
        ((3, 3), 0, 0, [0, 0]),
    ],
)
def test_shares(sizes: tuple[int, ...], count: int, spare: int, wanted: list[int]) -> None:
    labels = of_sizes(*sizes)
    assert shares(labels, stratified_sample(labels, count, 0, "a test", spare)) == wanted


@settings(max_examples=100, deadline=None)
@given(
    some.lists(some.integers(0, 6), min_size=1, max_size=60),
    some.integers(0, 70),
    some.integers(0, 2**63 - 1),
)
def test_any_choice(values: list[int], count: int, seed: int) -> None:
    labels = torch.tensor(values)
    chosen = stratified_sample(labels, count, seed, "a test")
    assert chosen.tolist() == sorted(set(chosen.tolist())) and len(chosen) == min(
        count, len(values)
    )
    assert torch.equal(chosen, stratified_sample(labels, count, seed, "a test"))
    if count >= len(set(values)):
        assert set(labels[chosen].tolist()) == set(values)


@settings(max_examples=100, deadline=None)
@given(some.lists(some.integers(0, 6), min_size=1, max_size=60), some.floats(0, 0.99))
def test_any_split(values: list[int], fraction: float) -> None:
    labels = torch.tensor(values)
    train, val = train_val_split(labels, fraction, 3)
    assert sorted(train.tolist() + val.tolist()) == list(range(len(values)))
    assert len(val) == max(round(len(values) * fraction), fraction > 0 and len(values) > 1)
    if len(val) <= len(values) - len(set(values)):
        assert set(labels[train].tolist()) == set(values)


def test_the_seed_and_the_purpose_decide() -> None:
    labels = of_sizes(50, 50)
    one, same, other = (train_val_split(labels, 0.2, seed)[1] for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert not torch.equal(
        stratified_sample(labels, 20, 1, "limit"), stratified_sample(labels, 20, 1, "validation")
    )


def test_every_image_is_as_likely() -> None:
    labels = of_sizes(6, 3)
    chosen = torch.cat([stratified_sample(labels, 3, seed, "a test") for seed in range(600)])
    assert all(
        140 < times < 260 for times in torch.bincount(chosen, minlength=9).tolist()
    )  # 200 each, deviation 12
