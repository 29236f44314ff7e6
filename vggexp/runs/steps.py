"""Reads steps.jsonl, the curves inside the epochs of a run. Needs no torch."""

from pathlib import Path
from typing import Any

from vggexp.runs import jsonl
from vggexp.runs.directory import STEPS
from vggexp.runs.schema import check_step, damaged


def read_steps(folder: Path) -> list[dict[str, Any]]:
    """Returns one object for each point; [] if the run has no points.

    Raises:
        CheckpointError: the file is not what a run writes.
        ResourceError: a permission or a resource is missing.
    """
    path = folder / STEPS
    rows = jsonl.read(path)
    for number, row in enumerate(rows, 1):
        try:
            check_step(row)
        except ValueError as error:
            raise damaged(path, f"line {number}: {error}") from error
    return rows
