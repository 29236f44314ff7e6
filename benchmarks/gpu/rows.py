"""A line of the table, and what a part needs to know to make some."""

import json
from pathlib import Path
from typing import NamedTuple

SYSTEM = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
IMAGES = 60_000
SMALL = ["data=synthetic", "data.images=80", "data.size=28", "data.resize=32", "data.batch_size=16"]
SMALL += ["arch.width=0.05", "arch.hidden=[16]", "device.threads=1"]


class Row(NamedTuple):
    what: str
    figure: str
    goal: str = ""
    verdict: str = ""  # pass or miss, where there is a goal


class Setting(NamedTuple):
    """device: cuda or cpu. small: sizes that try the command itself and say nothing of speed."""

    device: str
    small: bool

    def words(self, *more: str) -> list[str]:
        """The overrides of the source run, on pictures that are here, with `more`."""
        words = ["experiment=gluon_vgg11", f"device={self.device}"]
        if self.small:
            return [
                *words,
                *SMALL,
                *(word for word in more if not word.startswith(("data.resize", "data.batch_size"))),
            ]
        return [*words, *([] if SYSTEM.is_dir() else synthetic(IMAGES)), *more]

    def steps(self, number: int) -> int:
        return 3 if self.small else number


def synthetic(images: int) -> list[str]:
    return ["data=synthetic", f"data.images={images}", "data.size=28", "data.resize=96"]


def told(what: str, figure: str) -> None:
    say(Row(what, figure))


def at_least(what: str, value: float, goal: float, form: str) -> None:
    say(
        Row(what, form.format(value), "≥ " + form.format(goal), "pass" if value >= goal else "miss")
    )


def at_most(what: str, value: float, goal: float, form: str) -> None:
    say(
        Row(what, form.format(value), "≤ " + form.format(goal), "pass" if value <= goal else "miss")
    )


def say(row: Row) -> None:
    """To the process that asked, at once: what a part has found stays found when it is stopped."""
    print(json.dumps(row), flush=True)
