"""Checks the tables of the page."""

from tests.report.conftest import make_record
from vggexp.report.sections import (
    MAX_OTHER_VALUES,
    environment_section,
    repeats_section,
    runs_section,
)
from vggexp.report.table import build_table


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
    assert repeats_section([]) == ""


def test_a_run_without_epochs_has_no_curves_to_tick():
    runs = [make_record("a", rows=[{"epoch": 1}], val_accuracy=0.9), make_record("b")]
    first, second = runs_section(build_table(runs)).split("<tr data-run=")[1:]
    assert " disabled" not in first
    assert " disabled" in second


def test_a_rounded_cell_has_its_exact_value():
    html = runs_section(build_table([make_record("a", val_accuracy=0.123456)]))
    assert '<td class="number" data-value="0.123456">0.1235</td>' in html
