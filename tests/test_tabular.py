"""Tables as text."""

from vggexp.tabular import csv_text, markdown


def test_markdown_is_aligned():
    assert markdown(["run", "x"], [["a", "0.25"], ["longer", "-"]]) == [
        "| run    | x    |",
        "|--------|------|",
        "| a      | 0.25 |",
        "| longer | -    |",
    ]


def test_no_text_ends_its_cell():
    assert markdown(["a|b"], [["|"]]) == ["| a\\|b |", "|------|", "| \\|   |"]


def test_csv_keeps_every_digit():
    assert csv_text(["x", "y"], [[0.1 + 0.2, None], ["a,b", ""]]).splitlines() == [
        "x,y",
        "0.30000000000000004,",
        '"a,b",',
    ]
