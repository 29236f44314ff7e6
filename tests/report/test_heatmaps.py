"""Checks the heat map of scores: its axes, its cells, and the order of its rows and columns."""

from tests.report.conftest import make_record
from vggexp.report.heatmaps import choose_axes, heat_map, natural_sort_key
from vggexp.report.table import build_table


def make_sweep():
    """Makes two learning rates for vgg11, of which one failed, and one for vgg13."""
    runs = []
    for seed, accuracy in enumerate([0.8, 0.9]):
        keys = {"optimizer.lr": 0.01, "seed": seed}
        runs.append(make_record("a", "arch=vgg11", keys=keys, val_accuracy=accuracy))
    runs.append(make_record("b", "arch=vgg11", keys={"optimizer.lr": 0.1}, state="failed"))
    for seed, accuracy in enumerate([0.92, 0.98]):
        keys = {"optimizer.lr": 0.01, "seed": seed}
        runs.append(make_record("c", "arch=vgg13", keys=keys, val_accuracy=accuracy))
    return runs


def test_a_cell_has_the_mean_over_seeds():
    html = heat_map(build_table(make_sweep()))
    first_row = html.index("0.8500</td><td>✕</td>")
    second_row = html.index("0.9500</td><td></td>")
    assert first_row < second_row


def test_without_repeats_a_cell_has_the_best_run():
    runs = [run for run in make_sweep() if run.config["seed"] == 1 or run.state == "failed"]
    html = heat_map(build_table(runs))
    assert html.index("0.9000</td><td>✕</td>") < html.index("0.9800</td><td></td>")


def test_a_setting_that_was_stopped_has_no_score():
    runs = []
    for run in make_sweep():
        runs.append(run._replace(state="paused") if run.name == "c" else run)
    html = heat_map(build_table(runs))
    assert "0.8500</td><td>✕</td>" in html
    assert "0.9500" not in html


def test_the_axes_are_network_and_learning_rate_if_both_vary():
    assert choose_axes(build_table(make_sweep())) == ("network", "optimizer.lr")


def test_else_the_axes_are_the_two_settings_with_the_most_values():
    runs = [
        make_record("", keys={"data.batch_size": batch_size, "arch.hidden": [hidden]})
        for batch_size in (1, 2, 3)
        for hidden in (4, 5)
    ]
    assert choose_axes(build_table(runs)) == ("arch.hidden", "data.batch_size")


def test_one_run_has_no_heat_map():
    table = build_table(make_sweep()[:1])
    assert choose_axes(table) is None
    assert heat_map(table) == ""


def test_names_sort_by_their_numbers():
    names = ["vgg16", "0.1", "vgg9_bn", "0.05", "vgg9", "1e-3", "null"]
    expected = ["1e-3", "0.05", "0.1", "null", "vgg9", "vgg9_bn", "vgg16"]
    assert sorted(names, key=natural_sort_key) == expected


def make_grid(*accuracies):
    lrs = [0.01, 0.02, 0.03, 0.04, 0.05]
    runs = []
    for lr, accuracy in zip(lrs, accuracies, strict=True):
        for arch in ("vgg11", "vgg13"):
            keys = {"optimizer.lr": lr}
            runs.append(make_record("a", f"arch={arch}", keys=keys, val_accuracy=accuracy))
    return heat_map(build_table(runs))


def test_a_network_that_learned_nothing_leaves_the_colors_to_the_others():
    html = make_grid(0.9, 0.91, 0.92, 0.93, 0.1)
    assert "▾: below 0.9000, where the colors begin." in html
    assert 'style="--v:0.06">0.1000 ▾' in html
    assert 'style="--v:0.06">0.9000<' in html


def test_colors_begin_at_the_lowest_score_without_outliers():
    html = make_grid(0.5, 0.6, 0.7, 0.8, 0.9)
    assert "▾" not in html
    assert 'style="--v:0.06">0.5000<' in html
