"""Makes runs for a report, and reads the written files."""

import csv
import json
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest

from benchmarks.report import make_runs
from vggexp.config import compose
from vggexp.config.keys import flatten, to_plain
from vggexp.runs import jsonl
from vggexp.runs.directory import write_result
from vggexp.runs.records import RunRecord
from vggexp.sweep import expand

HOSTILE = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>\"'&|\x1b[2J\n\u2028"


@pytest.fixture(scope="session")
def sweep(tmp_path_factory):
    """A folder of 50 finished and failed runs of a sweep."""
    root = tmp_path_factory.mktemp("runs")
    make_runs(root, 50)
    return root


@cache
def compose_flat(*overrides):
    config = expand.compose_run(compose.parse_command(list(overrides)))
    return flatten(to_plain(config))


def make_record(name, *overrides, keys=(), state="finished", rows=(), data_files=None, **result):
    """Makes a RunRecord without files.

    Args:
        keys: Values that replace those of the composed configuration, such as {"seed": 1}.
        data_files: The fingerprint of the data, {"train": SHA-256}.
        result: Values of result.json: val_accuracy=0.5 is "val/accuracy".
    """
    values = {key.replace("_", "/"): value for key, value in result.items()}
    return RunRecord(
        Path("outputs") / name,
        state,
        compose_flat(*overrides) | dict(keys),
        {"epoch": 5, **values},
        list(rows),
        {"data": data_files} if data_files else {},
    )


def make_hostile_run(folder: Path, state: str, **result: object) -> Path:
    """Makes a run directory in which every text is HOSTILE."""
    folder.mkdir(parents=True)
    config = {"data": {"name": HOSTILE}, HOSTILE: {"key": HOSTILE + state}, "seed": 0}
    epoch = {"epoch": 1, "val/accuracy": 0.5, "train/loss": 1e999}
    environment = {HOSTILE: HOSTILE + state, "versions": {"torch": HOSTILE}}
    (folder / "config.yaml").write_text(json.dumps(config))
    jsonl.rewrite(folder / "metrics.jsonl", [epoch])
    (folder / "env.json").write_text(json.dumps(environment))
    write_result(folder, state, error=HOSTILE, **result)
    return folder


class Page(HTMLParser):
    """Parses the HTML page.

    Attributes:
        elements: Number of elements of each tag.
        attributes: Names of all attributes.
        headers: Headers of the first table of runs.
        rows: Cells of the tables of runs, as (displayed text, exact value).
        data: Text of the element with the data of the charts.
    """

    def __init__(self, text: str):
        super().__init__()
        self.elements: dict[str, int] = {}
        self.attributes: set[str] = set()
        self.headers: list[str] = []
        self.rows: list[list[tuple[str, str]]] = []
        self.data = ""
        self._exact: str | None = None
        self._section: str | None = None
        self._in_head = False
        self._texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.elements[tag] = self.elements.get(tag, 0) + 1
        self.attributes |= values.keys()
        if values.get("id") == "data" or values.get("class") == "runs":
            self._section = values.get("id") or "runs"
        elif self._section == "runs" and tag in ("th", "td", "tr", "thead"):
            self._texts = []
            self._exact = values.get("data-value")
            self._in_head = self._in_head or tag == "thead"
            if tag == "tr" and "data-run" in values:
                self.rows.append([])

    def handle_data(self, text):
        self._texts.append(text)
        if self._section == "data":
            self.data += text

    def handle_endtag(self, tag):
        if self._section == "runs" and tag in ("th", "td"):
            displayed = "".join(self._texts)
            exact = displayed if self._exact is None else self._exact
            if not self._in_head:
                self.rows[-1].append((displayed, exact))
            elif displayed not in self.headers:
                self.headers.append(displayed)
        elif tag == "thead":
            self._in_head = False
        elif tag in ("table", "script"):
            self._section = None

    def column(self, name: str) -> list[str]:
        """Returns the exact values of a column of the table of runs."""
        index = self.headers.index(name)
        return [cells[index][1] for cells in self.rows]


def read_page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text("utf-8"))


def read_csv(folder: Path) -> list[dict[str, str]]:
    with open(folder / "report.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
