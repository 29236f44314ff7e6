"""A row of the table, and what a part needs to know to print rows."""

import json
from pathlib import Path
from typing import NamedTuple

SYSTEM = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
IMAGES = 60_000
SMALL = [
    "data=synthetic",
    "data.images=80",
    "data.size=28",
    "data.resize=32",
    "data.batch_size=16",
    "arch.width=0.05",
    "arch.hidden=[16]",
    "device.threads=1",
]
SYNTHETIC = ["data=synthetic", f"data.images={IMAGES}", "data.size=28", "data.resize=96"]


class Row(NamedTuple):
    what: str
    figure: str
    goal: str = ""
    verdict: str = ""  # pass or miss, if there is a goal


class Setting(NamedTuple):
    """device: cuda or cpu. small: sizes that test the command and do not measure speed."""

    device: str
    small: bool

    def overrides(self, *extra: str) -> list[str]:
        """Returns the overrides of the source run on images that this machine has, and `extra`."""
        overrides = ["experiment=gluon_vgg11", f"device={self.device}"]
        if self.small:
            overrides += SMALL
            for override in extra:
                if not override.startswith(("data.resize", "data.batch_size")):
                    overrides.append(override)
            return overrides
        if not SYSTEM.is_dir():
            overrides += SYNTHETIC
        return [*overrides, *extra]

    def steps(self, count: int) -> int:
        return 3 if self.small else count


def print_figure(what: str, figure: str) -> None:
    print_row(Row(what, figure))


def print_at_least(what: str, value: float, goal: float, template: str) -> None:
    verdict = "pass" if value >= goal else "miss"
    print_row(Row(what, template.format(value), f"≥ {template.format(goal)}", verdict))


def print_at_most(what: str, value: float, goal: float, template: str) -> None:
    verdict = "pass" if value <= goal else "miss"
    print_row(Row(what, template.format(value), f"≤ {template.format(goal)}", verdict))


def print_row(row: Row) -> None:
    """Prints the row at once, so that the rows of a part that is stopped are not lost."""
    print(json.dumps(row), flush=True)
