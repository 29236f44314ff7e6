"""The report of a folder of runs: three files with the same numbers, and a page that trusts nothing in them."""

import base64
import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from benchmarks.report import made_runs
from vggexp.report.__main__ import main
from vggexp.runs import jsonl
from vggexp.runs.directory import write_result
from vggexp.system.locks import lock_run_dir

ROOT = Path(__file__).parents[2]
HOSTILE = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>\"'&|\x1b[2J\n\u2028"


class Page(HTMLParser):
    """elements: how many there are of each; rows: the table of the runs, as (shown, exact) by column."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: dict[str, int] = {}
        self.attributes: set[str] = set()
        self.heads: list[str] = []
        self.rows: list[list[tuple[str, str]]] = []
        self.exact: str | None = None
        self.place: str | None = None
        self.texts: list[str] = []
        self.data = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.elements[tag] = self.elements.get(tag, 0) + 1
        self.attributes |= given.keys()
        if given.get("id") in ("runs", "data"):
            self.place = given["id"]
        elif self.place == "runs" and tag in ("th", "td", "tr"):
            self.texts, self.exact = [], given.get("data-value")
            if tag == "tr" and "data-run" in given:
                self.rows.append([])

    def handle_data(self, text):
        self.texts.append(text)
        if self.place == "data":
            self.data += text

    def handle_endtag(self, tag):
        if self.place == "runs" and tag == "th":
            self.heads.append("".join(self.texts))
        elif self.place == "runs" and tag == "td":
            shown = "".join(self.texts)
            self.rows[-1].append((shown, shown if self.exact is None else self.exact))
        elif tag in ("table", "script"):
            self.place = None


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """50 finished and failed runs of a sweep."""
    root = tmp_path_factory.mktemp("runs")
    made_runs(root, 50)
    return root


def read(folder: Path) -> tuple[Page, list[dict[str, str]]]:
    with open(folder / "report.csv", newline="", encoding="utf-8") as file:
        return Page((folder / "report.html").read_text("utf-8")), list(csv.DictReader(file))


def test_all_files_have_the_same_numbers(sweep, tmp_path, capsys):
    assert main([str(sweep), f"--out={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    page, rows = read(tmp_path)
    assert len(rows) == len(page.rows) == 50 and page.heads[1:] == list(rows[0])
    for row, cells in zip(rows, page.rows, strict=True):
        assert [exact for _, exact in cells[1:]] == list(row.values())
        shown = dict(zip(page.heads, (text for text, _ in cells), strict=True))
        if row["val/accuracy"]:
            assert shown["val/accuracy"] == f"{float(row['val/accuracy']):.4f}"
        assert shown["parameters"] == f"{int(row['parameters']):,}"
    scores = [float(row["val/accuracy"]) for row in rows[:-1]]
    assert scores == sorted(scores, reverse=True) and rows[-1]["state"] == "failed"
    text = (tmp_path / "report.md").read_text()
    assert printed.startswith(text) and [
        Path(line.split()[1]).name for line in printed.splitlines()[-3:]
    ] == [
        "report.html",
        "report.csv",
        "report.md",
    ]
    assert text.count("\n| vgg") == 50 + 20
    drawn = json.loads(page.data)
    assert [run["score"] for run in drawn["runs"][:-1]] == scores and len(
        drawn["runs"][-1]["curves"]
    ) == 4
    assert main([str(sweep), f"--out={tmp_path}", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [run["val/accuracy"] for run in answer["runs"][:-1]] == scores and len(
        answer["repeats"]
    ) == 20


def test_the_page_asks_for_nothing(sweep, tmp_path):
    main([str(sweep), f"--out={tmp_path}"])
    text = (tmp_path / "report.html").read_text("utf-8")
    assert set(re.findall(r"https?://[^\"']*", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\(", text)
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:;"
        in text
    )


def hostile(folder: Path, state: str, **values: object) -> Path:
    folder.mkdir(parents=True)
    config = {"data": {"name": HOSTILE}, HOSTILE: {"key": HOSTILE + state}, "seed": 0}
    (folder / "config.yaml").write_text(json.dumps(config))
    jsonl.rewrite(
        folder / "metrics.jsonl", [{"epoch": 1, "val/accuracy": HOSTILE, "train/loss": 1e999}]
    )
    (folder / "env.json").write_text(
        json.dumps({HOSTILE: HOSTILE + state, "versions": {"torch": HOSTILE}})
    )
    write_result(folder, state, error=HOSTILE, **values)
    return folder


def test_texts_of_runs_stay_texts(tmp_path, capsys):
    name = HOSTILE.replace("/", "\u2215")
    for state in ("failed", HOSTILE):
        hostile(tmp_path / (name + state[:6].replace("/", "")), state)
    best = hostile(
        tmp_path / name,
        "finished",
        **{"val/accuracy": 0.5, "parameters": HOSTILE, "seconds": 10**400},
    )
    np.savez(best / "predictions.npz", scores=np.eye(3, dtype="f4")[[0, 1, 1]], labels=np.arange(3))
    for letter in "ab":
        hostile(tmp_path / letter / "same", "finished")
    assert main([str(tmp_path)]) == 0
    assert "\x1b" not in capsys.readouterr().out
    page, rows = read(tmp_path)
    assert (
        page.elements["script"] == 2
        and "img" not in page.elements
        and "onerror" not in page.attributes
    )
    assert [cells[page.heads.index("run")][1] for cells in page.rows] == [
        row["run"] for row in rows
    ]
    assert rows[0]["run"] == name and {row["error"] for row in rows} == {HOSTILE}
    assert [Path(row["run"]).parent.name for row in rows if row["run"].endswith("same")] == [
        "a",
        "b",
    ]
    assert HOSTILE in json.loads(page.data)["runs"][0]["name"]
    assert len((tmp_path / "report.md").read_text().splitlines()) == 2 + 5 + 1 + 2 + 3


def test_runs_in_every_state(tmp_path, capsys):
    made_runs(tmp_path, 6)
    folders = sorted(tmp_path.iterdir())
    going, killed, broken, odd, bare = folders[:5]
    write_result(going, "running")
    write_result(killed, "running")
    (broken / "metrics.jsonl").write_text("{}\n" + "x\n" * 2)
    (odd / "config.yaml").write_text("a: &a [*a]")
    (bare / "metrics.jsonl").unlink()
    (bare / "env.json").unlink()
    (bare / "predictions.npz").write_bytes(b"PK")
    with lock_run_dir(going):
        assert main([str(tmp_path)]) == 0
    warnings = capsys.readouterr().err.splitlines()
    assert all(
        line.startswith("vggexp: warning: ") and line.endswith(" (left out)") for line in warnings
    )
    assert (
        "metrics.jsonl: line 2" in warnings[0]
        and "config.yaml: holds aliases" in warnings[1]
        and len(warnings) == 2
    )
    _, rows = read(tmp_path)
    states = {row["run"]: row["state"] for row in rows}
    assert (states[going.name], states[killed.name], states[bare.name]) == (
        "running",
        "interrupted",
        "finished",
    )
    running = next(row for row in rows if row["run"] == going.name)
    assert (
        float(running["val/accuracy"]) > 0
        and running["test/accuracy"] == ""
        and running["epochs"] == "5"
    )


def test_where_there_is_nothing_to_report(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    hostile(tmp_path / "bad" / "x", "finished")
    (tmp_path / "bad" / "x" / "result.json").write_text("[]")
    assert [main(words) for words in (["none"], ["file"], [], ["empty", "--nosuch"])] == [2] * 4
    assert main(["empty"]) == main(["bad"]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["error"] * 4 + ["warning", "error"] * 2
    hostile(tmp_path / "good" / "x", "failed")
    assert main(["good", "--out=file"]) == 2 and main(["good", "--out=file/x"]) == 6
    assert sorted(os.listdir(tmp_path)) == ["bad", "empty", "file", "good"] and os.listdir(
        "good"
    ) == ["x"]


def test_where_the_files_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made_runs(tmp_path / "outputs", 2)
    one, other = sorted((tmp_path / "outputs").iterdir())
    assert (
        main([str(one), str(other)])
        == main(["outputs"])
        == main(["outputs", "--out=new/deep"])
        == 0
    )
    for folder in (".", "outputs", "new/deep"):
        assert {"report.html", "report.csv", "report.md"} <= set(os.listdir(folder))
    assert not [name for name in os.listdir(one) if name.startswith("report")]


def test_a_whole_report_imports_no_torch(sweep, tmp_path):
    code = "import sys; from vggexp.report import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-c", code, str(sweep), f"--out={tmp_path}"], check=True, env=environment
    )


def opened(page: Path, profile: Path) -> str:
    """The page as Chromium has it once its scripts have run. Anything on the console is an error."""
    quiet = [
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
    ]
    words = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", *quiet, "--disable-sync"]
    words += [
        f"--user-data-dir={profile}",
        "--enable-logging=stderr",
        "--v=0",
        "--dump-dom",
        page.as_uri(),
    ]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert not [line for line in ended.stderr.splitlines() if "CONSOLE" in line]
    return ended.stdout


# Sorts by test accuracy twice, filters, and draws one curve: what a reader does.
READER = """
const press = (element) => element.dispatchEvent(new MouseEvent("click", { bubbles: true }));
const heads = [...document.querySelectorAll("#runs th button")];
press(heads.find((head) => head.textContent === "test/accuracy"));
press(heads.find((head) => head.textContent === "test/accuracy"));
press(document.querySelector("[data-show=none]"));
press(document.querySelector("#runs tbody tr input"));
filter.value = "vgg13 seed1";
filter.dispatchEvent(new Event("input"));
document.title = [...document.querySelectorAll("#runs tbody tr")].filter((row) => !row.hidden).length;
"""


@pytest.mark.browser
def test_in_a_browser(sweep, tmp_path):
    main([str(sweep), f"--out={tmp_path}"])
    text = opened(tmp_path / "report.html", tmp_path / "new")
    page, rows = read(tmp_path)
    there = Page(text)
    assert there.rows == page.rows and [cells[-1][1] for cells in there.rows] == [
        row["run"] for row in rows
    ]
    assert text.count('<path class="curve') == 4 * 12 and text.count('class="dot') == 2 * 49
    source = (tmp_path / "report.html").read_text("utf-8")
    policy = re.search('<meta http-equiv="Content-Security-Policy"[^>]*>', source)[0]
    changed = source.replace(policy, "").replace("</body>", f"<script>{READER}</script></body>")
    (tmp_path / "used.html").write_text(changed, "utf-8")
    text = opened(tmp_path / "used.html", tmp_path / "other")
    scores = [cells[page.heads.index("test/accuracy")][1] for cells in Page(text).rows]
    assert scores == [*sorted(scores[:-1], key=float), ""]
    assert text.count('<path class="curve') == 4 and 'aria-sort="ascending"' in text
    shown = sum("vgg13" in row["run"] and "seed1" in row["run"] for row in rows)
    assert f"<title>{shown}</title>" in text and shown > 0
