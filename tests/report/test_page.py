"""Checks that the page loads nothing, that texts of runs stay texts, and that its script works."""

import base64
import hashlib
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.report.conftest import (
    HOSTILE,
    Page,
    make_hostile_run,
    make_record,
    read_csv,
    read_page,
)
from tools import chromium
from vggexp.report.__main__ import main
from vggexp.report.page import MAX_CURVE_POINTS, render_page
from vggexp.report.table import build_table


def test_the_page_loads_nothing(sweep, tmp_path):
    main([str(sweep), f"--out={tmp_path}"])
    text = (tmp_path / "report.html").read_text("utf-8")
    assert set(re.findall(r"https?://[^\"']*", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\(", text)
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; img-src data:;"
    )
    assert policy in text


def test_texts_of_runs_stay_texts(tmp_path, capsys):
    name = HOSTILE.replace("/", "\u2215")
    for state in ("failed", HOSTILE):
        make_hostile_run(tmp_path / (name + state[:6].replace("/", "")), state)
    metrics = {"val/accuracy": 0.5, "weights_sha256": HOSTILE}
    best = make_hostile_run(tmp_path / name, "finished", **metrics)
    probs = np.eye(3, dtype="f4")[[0, 1, 1]]
    np.savez(best / "predictions.npz", scores=probs, labels=np.arange(3))
    for letter in "ab":
        make_hostile_run(tmp_path / letter / "same", "finished")
    assert main([str(tmp_path)]) == 0
    assert "\x1b" not in capsys.readouterr().out

    page = read_page(tmp_path)
    assert page.elements["script"] == 2
    assert "img" not in page.elements
    assert "onerror" not in page.attributes
    assert HOSTILE in json.loads(page.data)["runs"][0]["name"]

    rows = read_csv(tmp_path)
    names = [row["run"] for row in rows]
    assert page.column("run") == names
    assert names[0] == name
    assert {row["error"] for row in rows} == {HOSTILE}
    folders = [Path(name).parent.name for name in names if name.endswith("same")]
    assert folders == ["a", "b"]
    assert len((tmp_path / "report.md").read_text().splitlines()) == 2 + 5 + 1 + 2 + 3


def test_long_curves_are_thinned():
    rows = [{"epoch": epoch, "val/accuracy": 0.5} for epoch in range(1, 1001)]
    table = build_table([make_record("a", rows=rows)])
    data = json.loads(Page(render_page(table, [], [])).data)
    epochs = [row[0] for row in data["runs"][0]["curves"]]
    assert len(epochs) <= MAX_CURVE_POINTS + 1
    assert epochs[0] == 1
    assert epochs[-1] == 1000


def load_in_chromium(page: Path, profile: Path) -> str:
    """Returns the HTML after its scripts have run. Messages on the console are errors."""
    command = [
        *chromium.COMMAND,
        f"--user-data-dir={profile}",
        "--enable-logging=stderr",
        "--v=0",
        "--dump-dom",
        page.as_uri(),
    ]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert not [line for line in process.stderr.splitlines() if "CONSOLE" in line]
    return process.stdout


# Acts as a reader: sorts by test accuracy twice, draws one curve, and filters.
READER = """
const click = (element) => element.dispatchEvent(new MouseEvent("click", { bubbles: true }));
const buttons = [...document.querySelectorAll("#runs th button")];
click(buttons.find((button) => button.textContent === "test/accuracy"));
click(buttons.find((button) => button.textContent === "test/accuracy"));
click(document.querySelector("[data-show=none]"));
click(document.querySelector("#runs tbody tr input"));
filter.value = "vgg13 seed1";
filter.dispatchEvent(new Event("input"));
const rows = [...document.querySelectorAll("#runs tbody tr")];
document.title = rows.filter((row) => !row.hidden).length;
"""


@pytest.mark.browser
@pytest.mark.process
def test_the_page_in_a_browser(sweep, tmp_path):
    main([str(sweep), f"--out={tmp_path}"])
    names = [row["run"] for row in read_csv(tmp_path)]
    page = Page(load_in_chromium(tmp_path / "report.html", tmp_path / "first"))
    assert page.rows == read_page(tmp_path).rows
    assert page.column("run") == names
    assert page.elements["path"] == 4 * 12
    assert page.elements["circle"] == 2 * 49

    source = (tmp_path / "report.html").read_text("utf-8")
    policy = re.search('<meta http-equiv="Content-Security-Policy"[^>]*>', source)[0]
    source = source.replace(policy, "")
    source = source.replace("</body>", f"<script>{READER}</script></body>")
    (tmp_path / "used.html").write_text(source, "utf-8")
    text = load_in_chromium(tmp_path / "used.html", tmp_path / "second")
    used = Page(text)
    accuracies = used.column("test/accuracy")
    assert accuracies == [*sorted(accuracies[:-1], key=float), ""]
    assert used.elements["path"] == 4
    assert 'aria-sort="ascending"' in text
    matches = [name for name in names if "vgg13" in name and "seed1" in name]
    assert matches
    assert f"<title>{len(matches)}</title>" in text
