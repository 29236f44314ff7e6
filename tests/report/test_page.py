"""Checks that the page loads nothing, that texts of runs stay texts, and that its script works."""

import base64
import hashlib
import json
import re
import subprocess
from html import escape
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
from vggexp.formatting import printable
from vggexp.report.__main__ import main
from vggexp.report.page import MAX_CURVE_POINTS, render_page
from vggexp.report.selection import Selection
from vggexp.report.table import build_sections


def render(runs, *, best=None, **selection):
    return render_page(build_sections(runs, best), Selection([], len(runs), best=best, **selection))


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
    data = json.loads(page.data)
    assert data["runs"][0]["error"] == HOSTILE
    assert data["sections"][0]["environment"]["versions.torch"] == HOSTILE

    rows = read_csv(tmp_path)
    names = [row["run"] for row in rows]
    assert page.column("run") == [*map(printable, names)]
    assert names[0] == name
    assert {row["error"] for row in rows} == {HOSTILE}
    folders = [Path(name).parent.name for name in names if name.endswith("same")]
    assert folders == ["a", "b"]
    assert len((tmp_path / "report.md").read_text().splitlines()) == 2 + 5 + 1 + 2 + 3


def test_what_runs_share_stands_once():
    runs = [make_record("a", val_accuracy=0.9), make_record("b", keys={"optimizer.lr": 0.5})]
    (section,) = json.loads(Page(render(runs)).data)["sections"]
    first, second = json.loads(Page(render(runs)).data)["runs"]
    assert section["settings"]["seed"] == "0"
    assert section["varying"] == ["optimizer.lr"]
    assert first["settings"] == {"optimizer.lr": "0.01"}
    assert second["settings"] == {"optimizer.lr": "0.5"}


def test_each_data_set_has_a_section_of_its_own():
    runs = [make_record(name, val_accuracy=0.9) for name in "ab"]
    runs.append(make_record("c", "data=mnist", val_accuracy=1))
    html = render(runs)
    assert "2 data sets." in html
    assert html.index('href="#data-0">fashion_mnist</a> 2 runs') < html.index(">mnist</a> 1 run<")
    page = Page(html)
    assert [cells[0][1] for cells in page.rows] == ["a", "b", "c"]
    data = json.loads(page.data)
    assert [section["runs"] for section in data["sections"]] == [[0, 2], [2, 3]]


def test_one_data_set_has_no_list_of_data_sets():
    assert "<nav>" not in render([make_record("a")])


def test_the_page_says_what_was_selected():
    html = render([make_record("a"), make_record("b")], where="seed < 1", best=1)
    assert "those of 2 runs with <code>seed &lt; 1</code>" in html
    assert "1 run of lower rank left out." in html


def test_the_ranking_says_what_one_validation_image_is_worth():
    runs = [make_record("a", "data.limit=640", val_accuracy=0.9)]
    assert "Of 64 validation images, one is 0.016 of the accuracy." in render(runs)
    runs.append(make_record("b", "data.limit=1000", val_accuracy=0.9))
    assert "The runs have 64 to 100 validation images; of 64, one is" in render(runs)
    many = make_record("c", "data=synthetic", "data.images=540000", val_accuracy=0.9)
    assert "Of 54,000 validation images, one is 0.000019 of the accuracy." in render([many])


def test_long_curves_are_thinned():
    rows = [{"epoch": epoch, "val/accuracy": 0.5} for epoch in range(1, 12_346)]
    data = json.loads(Page(render([make_record("a", rows=rows)])).data)
    epochs = [row[0] for row in data["runs"][0]["curves"]]
    assert len(epochs) <= MAX_CURVE_POINTS + 1
    assert epochs[0] == 1
    assert epochs[-1] == 12_345


def test_the_legend_has_the_last_value_of_a_curve_as_the_tables_have_it():
    rows = [{"epoch": 1, "val/loss": 3.0}, {"epoch": 2, "val/accuracy": 0.5, "val/loss": 2.30258}]
    (run,) = json.loads(Page(render([make_record("a", rows=rows, val_accuracy=0.5)])).data)["runs"]
    assert run["last"] == ["0.5000", "-", "2.3026", "-"]


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


# Acts as a reader: sorts by test accuracy twice, draws one curve, filters, and opens a run.
READER = """
const click = (element) => element.dispatchEvent(new MouseEvent("click", { bubbles: true }));
const buttons = [...document.querySelectorAll(".runs thead button")];
click(buttons.find((button) => button.textContent === "test/accuracy"));
click(buttons.find((button) => button.textContent === "test/accuracy"));
click(document.querySelector("[data-show=none]"));
click(document.querySelector(".runs tbody tr input"));
const find = document.querySelector(".bar input");
find.value = "vgg13 seed1";
find.dispatchEvent(new Event("input", { bubbles: true }));
const rows = [...document.querySelectorAll(".runs tbody tr")];
click(document.querySelector(".runs tbody tr button"));
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
    assert page.elements["ul"] == 4 + 2  # a legend in each chart

    source = (tmp_path / "report.html").read_text("utf-8")
    policy = re.search('<meta http-equiv="Content-Security-Policy"[^>]*>', source)[0]
    source = source.replace(policy, "")
    source = source.replace("</body>", f"<script>{READER}</script></body>")
    (tmp_path / "used.html").write_text(source, "utf-8")
    text = load_in_chromium(tmp_path / "used.html", tmp_path / "second")
    used = Page(text)
    accuracies = used.column("test/accuracy")
    assert accuracies == [*sorted(accuracies[:-1], key=float), ""]
    assert used.elements["path"] == 4 + 4  # one curve in each chart, and the charts of the panel
    panel = text[text.index('<dialog id="panel"') : text.index("</dialog>")]
    assert f"{float(accuracies[0]):.4f}" in panel
    assert "overrides.txt" not in panel  # the command is known
    assert ">python -m vggexp</code>" in panel
    assert 'aria-sort="ascending"' in text
    matches = [name for name in names if "vgg13" in name and "seed1" in name]
    assert matches
    assert f"<title>{len(matches)}</title>" in text


@pytest.mark.browser
@pytest.mark.process
@pytest.mark.parametrize("epochs, label", [(9, "epoch"), (60, "epoch, logarithmic")])
def test_the_label_of_the_epochs_names_the_scale_that_is_drawn(epochs, label, tmp_path):
    runs = []
    for name, length in [("a", epochs), ("b", 1), ("c", 1)]:
        rows = [{"epoch": epoch, "val/accuracy": 0.5} for epoch in range(1, length + 1)]
        runs.append(make_record(name, rows=rows))
    (tmp_path / "report.html").write_text(render(runs), "utf-8")
    text = load_in_chromium(tmp_path / "report.html", tmp_path / "profile")
    assert set(re.findall(">(epoch[^<]*)</text>", text)) == {label}


# Shows the page in a window of 390 px, and writes what a reader sees into the title.
PHONE = """
<iframe width="390" height="800" srcdoc="{page}"></iframe>
<script>
onload = () => {{
  const frame = document.querySelector("iframe").contentDocument;
  const right = frame.querySelectorAll(".runs thead th")[1].getBoundingClientRect().right;
  const box = frame.querySelector(".box");
  const width = frame.documentElement.scrollWidth;
  const notes = [...frame.querySelectorAll(".note")].map((note) => note.textContent);
  document.title = JSON.stringify({{ right, width, classes: box.className, notes }});
}};
</script>
"""


@pytest.mark.browser
@pytest.mark.process
def test_a_narrow_window_shows_the_score_and_marks_what_lies_beyond(tmp_path):
    runs = []
    for seed in range(5):
        loss = 1e9 if seed == 4 else 0.5
        rows = [{"epoch": epoch, "val/loss": loss / epoch, "val/accuracy": 0.5} for epoch in (1, 2)]
        keys = {"seed": seed, "optimizer.lr": 0.1 * seed, "data.batch_size": seed}
        runs.append(make_record(f"a{seed}", keys=keys, rows=rows, val_accuracy=0.9 - seed / 10))
    policy = r'<meta http-equiv="Content-Security-Policy"[^>]*>'
    page = escape(re.sub(policy, "", render(runs)))
    (tmp_path / "phone.html").write_text(PHONE.format(page=page), "utf-8")
    text = load_in_chromium(tmp_path / "phone.html", tmp_path / "profile")
    seen = json.loads(re.search("<title>(.*?)</title>", text)[1])
    assert seen["right"] <= 390
    assert seen["width"] <= 390
    assert "more-right" in seen["classes"]
    assert seen["notes"] == ["▲ 1 run above 0.5, up to 1B"]
