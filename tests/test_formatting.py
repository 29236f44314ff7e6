"""Tables as text."""

from vggexp.formatting import csv_table, markdown_table


def test_markdown_is_aligned():
    assert markdown_table(["run", "x"], [["a", "0.25"], ["longer", "-"]]) == [
        "| run    | x    |",
        "|--------|------|",
        "| a      | 0.25 |",
        "| longer | -    |",
    ]


def test_no_text_ends_its_cell():
    assert markdown_table(["a|b"], [["|"]]) == ["| a\\|b |", "|------|", "| \\|   |"]


def test_csv_keeps_every_digit():
    assert csv_table(["x", "y"], [[0.1 + 0.2, None], ["a,b", ""]]).splitlines() == [
        "x,y",
        "0.30000000000000004,",
        '"a,b",',
    ]
