"""Rows that differ in their seed alone."""

import pytest

from vggexp.runs.repeats import group_repeats, mean_rows

KEYS = ["optimizer.lr", "seed"]


def row(lr, seed, loss=None, state="finished"):
    return {"optimizer.lr": lr, "seed": seed, "val/loss": loss, "state": state}


def test_a_setting_is_all_but_the_seed():
    rows = [row([1, 2], 0), row(None, 0), row([1, 2], 1), row("null", 0)]
    assert group_repeats(rows, KEYS) == [[rows[0], rows[2]], [rows[1]], [rows[3]]]
    assert group_repeats(rows[:2], KEYS) == group_repeats([], KEYS) == []


def test_means_of_the_finished_the_lowest_loss_first():
    rows = [
        row(1, 0, 0.9),
        row(2, 0, 0.1),
        row(2, 1, 0.3),
        row(2, 2, 9.0, "failed"),
        row(3, 0, None, "failed"),
    ]
    best, other, none = mean_rows(rows, KEYS, ["val/loss"], "val/loss")
    assert (best["optimizer.lr"], best["runs"], best["not finished"]) == (2, 2, 1)
    assert (best["val/loss mean"], best["val/loss deviation"]) == pytest.approx((0.2, 0.02**0.5))
    assert (other["val/loss mean"], other["val/loss deviation"]) == (0.9, None)
    assert (none["val/loss mean"], none["runs"]) == (None, 0)
