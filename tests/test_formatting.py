"""Text and tables for people."""

import pytest

from vggexp.formatting import (
    aligned_table,
    csv_table,
    duration,
    error_line,
    escape_html,
    format_value,
    markdown_table,
    one_line,
    plural,
    shorten,
    shorten_name,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), ((1, [2.5, "x"]), "[1,[2.5,x]]"), ({"a": None}, "{a:null}")],
)
def test_values_are_formatted_as_they_are_typed(value, text):
    assert format_value(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (102.3, "102.3 s"), (234, "3.9 min"), (744, "12.4 min"), (11160, "3.1 h")],
)
def test_duration_has_a_unit(seconds, text):
    assert duration(seconds) == text


def test_an_error_is_one_line_with_any_characters():
    assert error_line("a\nb\x1b[2J\u2028\udc80é猫") == r"vggexp: error: a\nb\x1b[2J\u2028\udc80é猫"


@pytest.mark.parametrize(("count", "text"), [(0, "0 runs"), (1, "1 run"), (2, "2 runs")])
def test_plural(count, text):
    assert plural(count, "run") == text


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a\n  b\x1b"), "a b\\x1b"),
        (KeyError(), "KeyError"),
        ("x" * 201, "x" * 197 + "..."),
    ],
)
def test_the_error_text_of_another_library_is_one_short_line(error, line):
    assert one_line(error) == line


def test_a_long_text_is_shortened():
    assert shorten("a\nb", 4) == "a\\nb"
    assert shorten("abcdef", 5) == "ab..."


def test_a_long_name_keeps_both_ends():
    assert shorten_name("a\nb", 4) == "a\\nb"
    assert shorten_name("abcdefghij", 8) == "abc...ij"


def test_aligned_table_puts_numbers_to_the_right():
    rows = [("", "layers", "MMAC"), ("block1", "conv", "9.5"), ("total", "", "1,009.50")]
    assert aligned_table(rows, left_columns=2) == [
        "        layers      MMAC",
        "block1  conv         9.5",
        "total           1,009.50",
    ]


def test_aligned_table_ends_lines_without_spaces():
    assert aligned_table([("a", "b"), ("c", "long")], left_columns=2) == ["a  b", "c  long"]


def test_markdown_is_aligned():
    assert markdown_table(["run", "x"], [["a", "0.25"], ["longer", "-"]]) == [
        "| run    | x    |",
        "|--------|------|",
        "| a      | 0.25 |",
        "| longer | -    |",
    ]


def test_no_cell_moves_the_cursor_or_starts_a_line():
    assert aligned_table([["\x1b[2J\n"]], left_columns=1) == ["\\x1b[2J\\n"]
    assert markdown_table(["\r"], [["\udc80"]])[::2] == ["| \\r     |", "| \\udc80 |"]


def test_no_text_ends_its_cell():
    assert markdown_table(["a|b"], [["|"]]) == ["| a\\|b |", "|------|", "| \\|   |"]


def test_csv_keeps_every_digit():
    assert csv_table(["x", "y"], [[0.1 + 0.2, None], ["a,b", ""]]).splitlines() == [
        "x,y",
        "0.30000000000000004,",
        '"a,b",',
    ]


def test_html_shows_control_characters():
    assert escape_html("<a>\x1b[31m\nb") == "&lt;a&gt;\\x1b[31m\\nb"
