"""The curves inside the epochs, read back from steps.jsonl."""

import pytest

from vggexp.errors import CheckpointError
from vggexp.runs import jsonl
from vggexp.runs.directory import STEPS
from vggexp.runs.steps import read_steps

ROWS = [{"epoch": 1, "step": 5, "loss": 2.5}, {"epoch": 1, "step": 10, "loss": None}]


def test_a_run_without_points_has_no_rows(tmp_path):
    assert read_steps(tmp_path) == []


def test_rows_come_back(tmp_path):
    for row in ROWS:
        jsonl.append(tmp_path / STEPS, row, wait=False)
    assert read_steps(tmp_path) == ROWS


@pytest.mark.parametrize("line", ['{"epoch": 1}', '{"epoch": 1, "step": "a"}', '{"step": 1}', "[]"])
def test_a_line_that_no_run_writes_is_refused(tmp_path, line):
    (tmp_path / STEPS).write_text(f'{{"epoch": 1, "step": 5}}\n{line}\n{{"epoch": 1, "step": 9}}\n')
    with pytest.raises(CheckpointError, match=r"steps\.jsonl: line 2: "):
        read_steps(tmp_path)
