"""Checks the tables of the page."""

import re

from tests.report.conftest import make_record
from vggexp.report.sections import (
    MAX_OTHER_VALUES,
    environment_section,
    repeats_section,
    runs_section,
)
from vggexp.report.table import build_sections, build_table


def make_environments(*environments):
    return [make_record("a")._replace(environment=values) for values in environments]


def test_the_environment_lists_values_of_other_runs():
    hosts = ["a", "b", "b", "c"]
    html = environment_section(make_environments(*({"host": host} for host in hosts)))
    assert "<td>host</td><td>a</td>" in html
    assert "b (2 runs), c (1 run)" in html


def test_the_environment_lists_few_other_values():
    count = MAX_OTHER_VALUES + 2
    html = environment_section(make_environments(*({"host": str(n)} for n in range(count))))
    assert html.count(" (1 run)") == MAX_OTHER_VALUES
    assert " (1 run), ...</td>" in html


def test_equal_environments_have_one_column():
    html = environment_section(
        make_environments({"host": "a", "attempts": 1}, {"host": "a", "attempts": 2})
    )
    assert "<td>a</td></tr>" in html
    assert "other runs</th>" not in html
    assert "attempts" not in html


def test_without_an_environment_there_is_no_section():
    assert environment_section(make_environments({}, {})) == ""


def test_without_repeats_there_is_no_section():
    (section,) = build_sections([make_record("a")])
    assert repeats_section(section) == ""


def make_repeats(*overrides, settings=()):
    runs = []
    for seed, accuracy in enumerate([0.8, 0.9]):
        keys = {"seed": seed, **dict(settings)}
        runs.append(make_record(f"a{seed}", *overrides, keys=keys, val_accuracy=accuracy))
    other = {key: 0.25 for key, _ in settings}
    return [*runs, make_record("b", keys=other, val_accuracy=0.7)]


def headers_of(html):
    return re.findall("<th[^>]*>([^<]*)</th>", html)


def test_a_mean_stands_beside_its_deviation():
    (section,) = build_sections(make_repeats(settings=[("optimizer.lr", 0.1)]))
    html = repeats_section(section)
    assert ">0.8500 ± 0.0707</td>" in html
    assert ">0.7000</td>" in html
    assert headers_of(html)[:2] == ["optimizer.lr", "val/accuracy"]


def test_the_mean_stands_before_many_settings():
    names = ("lr", "momentum", "weight_decay", "dampening", "x")
    settings = [(f"optimizer.{name}", 0.1) for name in names]
    (section,) = build_sections(make_repeats(settings=settings))
    headers = headers_of(repeats_section(section))
    assert headers[:3] == ["optimizer.lr", "val/accuracy", "test/accuracy"]


def test_a_run_without_epochs_has_no_curves_to_tick():
    runs = [make_record("a", rows=[{"epoch": 1}], val_accuracy=0.9), make_record("b")]
    first, second = runs_section(build_table(runs), first=3).split("<tr data-run=")[1:]
    assert first.startswith('"3"')
    assert " disabled" not in first
    assert " disabled" in second


def test_a_rounded_cell_has_its_exact_value():
    html = runs_section(build_table([make_record("a", val_accuracy=0.123456)]), first=0)
    assert '<td class="number" data-value="0.123456">0.1235</td>' in html


def test_a_run_that_has_not_finished_says_so_beside_its_name():
    runs = [make_record("a", state="paused"), make_record("b")]
    finished, paused = runs_section(build_table(runs), first=0).split("<tr data-run=")[1:]
    assert paused.split("</th>")[0].endswith(
        '<span class="state paused">paused</span></span></div>'
    )
    assert "state" not in finished.split("</th>")[0]
