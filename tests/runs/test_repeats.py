"""Rows that differ only in their seed, their means, and the order of scores."""

from statistics import mean, stdev

import pytest

from vggexp.runs.repeats import group_repeats, mean_and_std, mean_rows, rank_key

KEYS = ["optimizer.lr", "seed"]


def row(lr, seed, loss=None, state="finished"):
    return {"optimizer.lr": lr, "seed": seed, "val/loss": loss, "state": state}


@pytest.mark.parametrize(
    ("metric", "order"),
    [("val/accuracy", [0.9, 0.1, 0.0, None]), ("x/loss", [0.0, 0.1, 0.9, None])],
)
def test_the_best_score_is_first(metric, order):
    scores = [None, 0.0, 0.9, 0.1]
    assert sorted(scores, key=lambda score: rank_key(score, metric)) == order


def test_mean_and_std():
    scores = [0.5, 0.7, 0.9]
    assert mean_and_std(scores) == pytest.approx((mean(scores), stdev(scores)))
    assert mean_and_std([0.5]) == (0.5, None)


def test_a_group_shares_all_keys_but_the_seed():
    rows = [row([1, 2], 0), row(None, 0), row([1, 2], 1), row("null", 0)]
    assert group_repeats(rows, KEYS) == [[rows[0], rows[2]], [rows[1]], [rows[3]]]


def test_without_repeats_there_is_no_group():
    assert group_repeats([row([1, 2], 0), row(None, 0)], KEYS) == []
    assert group_repeats([], KEYS) == []


def test_means_cover_the_finished_runs_and_the_lowest_loss_is_first():
    rows = [
        row(1, 0, 0.9),
        row(2, 0, 0.1),
        row(2, 1, 0.3),
        row(2, 2, 9.0, "failed"),
        row(3, 0, None, "failed"),
    ]
    best, second, empty = mean_rows(rows, KEYS, ["val/loss"], "val/loss")
    assert best == {
        "optimizer.lr": 2,
        "runs": 2,
        "not finished": 1,
        "val/loss mean": pytest.approx(0.2),
        "val/loss deviation": pytest.approx(0.02**0.5),
    }
    assert second["val/loss mean"] == 0.9
    assert second["val/loss deviation"] is None
    assert empty["val/loss mean"] is None
    assert empty["runs"] == 0


def test_copies_of_a_run_are_not_seeds():
    """Three runs of seed 0 and one of seed 1 are two seeds."""
    rows = [row(1, 0, 0.1389), row(1, 0, 0.1389), row(1, 0, 0.1389), row(1, 1, 0.2305)]
    rows += [row(2, 0, 0.5), row(2, 1, 0.7), row(2, 1, None, "failed")]
    copied, other = mean_rows(rows, KEYS, ["val/loss"], "val/loss")
    assert copied["val/loss mean"] == pytest.approx(0.1847)
    assert copied["val/loss deviation"] == pytest.approx(0.0648, abs=5e-5)
    assert (copied["runs"], copied["copies"], copied["not finished"]) == (2, 2, 0)
    assert (other["runs"], other["copies"], other["not finished"]) == (2, 0, 1)


def test_copies_that_differ_have_their_mean():
    rows = [row(1, 0, 0.1), row(1, 0, 0.3), row(1, 1, 0.6)]
    (means,) = mean_rows(rows, KEYS, ["val/loss"], "val/loss")
    assert means["val/loss mean"] == pytest.approx(0.4)


def test_runs_of_a_single_seed_have_no_deviation():
    rows = [{"val/loss": 0.1, "state": "finished"}] * 3  # the table leaves out a constant seed
    (means,) = mean_rows(rows, [], ["val/loss"], "val/loss")
    assert means["val/loss deviation"] is None
    assert (means["runs"], means["copies"]) == (1, 2)


def stopped(lr, seed, loss, epochs):
    return row(lr, seed, loss, "paused") | {"epochs": epochs}


def test_settings_that_were_stopped_have_means_and_come_after_the_finished():
    rows = [stopped(1, 0, 0.1, 2), stopped(1, 1, 0.3, 2)]
    rows += [stopped(2, 0, 0.8, 4), stopped(2, 1, 0.1, 2)]
    rows += [row(3, 0, 0.9), stopped(3, 1, 0.1, 2)]
    rows += [row(4, 0, None, "failed")]
    means = mean_rows(rows, KEYS, ["val/loss"], "val/loss")
    assert [mean["optimizer.lr"] for mean in means] == [3, 2, 1, 4]
    assert [mean["stopped at epoch"] for mean in means] == [None, 4, 2, None]
    assert [mean["runs"] for mean in means] == [1, 1, 2, 0]
    assert [mean["not finished"] for mean in means] == [1, 1, 0, 1]
    assert means[2]["val/loss mean"] == pytest.approx(0.2)


def test_without_stopped_settings_there_is_no_column_for_them():
    (means,) = mean_rows([row(1, 0, 0.1), row(1, 1, 0.2)], KEYS, ["val/loss"], "val/loss")
    assert "stopped at epoch" not in means
