"""Divides the seconds of a run into parts. Needs no torch."""

from collections.abc import Mapping
from typing import Any

PREFIX = "time/"  # of the seconds of a part: time/compute_seconds
SUFFIX = "_seconds"
# The whole of an epoch, and what comes in addition to the epochs and the test.
NOT_PARTS = ("epoch", "startup", "rest")


def part_seconds(row: Mapping[str, Any]) -> dict[str, float]:
    """Returns the seconds of each part, as {"compute": 6.0}, with the test on its own.

    Args:
        row: the content of result.json, in which the test is part of the evaluation, or a line
            of metrics.jsonl.
    """
    seconds = {}
    for key, value in row.items():
        part = key.removeprefix(PREFIX).removesuffix(SUFFIX)
        if key.startswith(PREFIX) and part not in NOT_PARTS and value is not None:
            seconds[part] = value
    if "evaluation" in seconds:
        seconds["evaluation"] -= seconds.get("test", 0.0)
    return seconds


def added_seconds(result: Mapping[str, Any]) -> dict[str, float]:
    """Returns the seconds of result.json that come in addition to the epochs and the test."""
    return {
        "start-up": result.get("time/startup_seconds") or 0.0,
        "rest": result.get("time/rest_seconds") or 0.0,
    }
