"""Checks the command: the three files have the same numbers, and unreadable runs are left out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.report import make_runs
from tests.permissions import without_root_rights
from tests.report.conftest import make_hostile_run, read_csv, read_page
from vggexp.report.__main__ import main
from vggexp.runs.directory import write_result
from vggexp.system.locks import lock_run_dir

ROOT = Path(__file__).parents[2]
NAMES = ["report.html", "report.csv", "report.md"]


def test_all_files_have_the_same_numbers(sweep, tmp_path, capsys):
    assert main([str(sweep), f"--out={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    page = read_page(tmp_path)
    rows = read_csv(tmp_path)
    assert len(rows) == 50
    assert len(page.rows) == 50
    assert sorted(page.headers) == sorted(rows[0])
    for row, cells in zip(rows, page.rows, strict=True):
        assert {name: cells[index][1] for index, name in enumerate(page.headers)} == row
        displayed = dict(zip(page.headers, (text for text, _ in cells), strict=True))
        assert displayed["parameters"] == f"{int(row['parameters']):,}"
        if row["val/accuracy"]:
            assert displayed["val/accuracy"] == f"{float(row['val/accuracy']):.4f}"

    accuracies = [float(row["val/accuracy"]) for row in rows[:-1]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert rows[-1]["state"] == "failed"

    text = (tmp_path / "report.md").read_text()
    assert text.count("\n| vgg") == 50 + 20
    assert printed.startswith(text)
    assert [Path(line.split()[1]).name for line in printed.splitlines()[-3:]] == NAMES

    charts = json.loads(page.data)["runs"]
    assert [run["score"] for run in charts[:-1]] == accuracies
    assert len(charts[-1]["curves"]) == 4

    assert main([str(sweep), f"--out={tmp_path}", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [run["val/accuracy"] for run in result["runs"][:-1]] == accuracies
    assert len(result["repeats"]) == 20
    assert result["files"] == [str(tmp_path / name) for name in NAMES]


def test_runs_in_every_state(tmp_path, capsys):
    make_runs(tmp_path, 6)
    running, killed, broken, aliased, bare, _ = sorted(tmp_path.iterdir())
    write_result(running, "running")
    write_result(killed, "running")
    (broken / "metrics.jsonl").write_text("{}\n" + "x\n" * 2)
    (aliased / "config.yaml").write_text("a: &a [*a]")
    (bare / "metrics.jsonl").unlink()
    (bare / "env.json").unlink()
    (bare / "predictions.npz").write_bytes(b"PK")
    with lock_run_dir(running):
        assert main([str(tmp_path)]) == 0
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("vggexp: warning: ")
    assert "metrics.jsonl: line 1: epoch is null" in first
    assert first.endswith(" (left out)")
    assert second.startswith("vggexp: warning: ")
    assert "config.yaml: not a configuration: stands for more than 100000 values" in second
    assert second.endswith(" (left out)")

    rows = {row["run"]: row for row in read_csv(tmp_path)}
    assert rows[running.name]["state"] == "running"
    assert rows[killed.name]["state"] == "interrupted"
    assert rows[bare.name]["state"] == "finished"
    assert float(rows[running.name]["val/accuracy"]) > 0
    assert rows[running.name]["test/accuracy"] == ""
    assert rows[running.name]["epochs"] == "5"


def test_nothing_to_report_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    make_hostile_run(tmp_path / "bad" / "x", "finished")
    (tmp_path / "bad" / "x" / "result.json").write_text("[]")
    for argv in (["none"], ["file"], [], ["empty", "--nosuch"]):
        assert main(argv) == 2
    assert main(["empty"]) == 3
    assert main(["bad", "empty"]) == 4
    levels = [line.split(": ")[1] for line in capsys.readouterr().err.splitlines()]
    assert levels == ["error"] * 6
    assert sorted(os.listdir(tmp_path)) == ["bad", "empty", "file"]


def test_an_unusable_target_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    make_hostile_run(tmp_path / "runs" / "x", "failed")
    assert main(["runs", "--out=file"]) == 2
    assert main(["runs", "--out=file/x"]) == 6
    assert sorted(os.listdir(tmp_path)) == ["file", "runs"]
    assert os.listdir("runs") == ["x"]


def test_the_files_go_beside_the_runs_or_into_the_named_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_runs(tmp_path / "outputs", 2)
    first, second = sorted((tmp_path / "outputs").iterdir())
    for argv in ([str(first), str(second)], ["outputs"], ["outputs", "--out=new/deep"]):
        assert main(argv) == 0
    for folder in (".", "outputs", "new/deep"):
        assert set(NAMES) <= set(os.listdir(folder))
    assert not [name for name in os.listdir(first) if name.startswith("report")]


def test_data_sets_have_tables_of_their_own(tmp_path, capsys):
    make_runs(tmp_path, 3)
    for folder, letter in zip(sorted(tmp_path.iterdir()), "aba", strict=True):
        environment = json.loads((folder / "env.json").read_text())
        environment["data"] = {"train": letter * 64}
        (folder / "env.json").write_text(json.dumps(environment))
    assert main([str(tmp_path)]) == 0
    tables = capsys.readouterr().out.split("## fashion_mnist ")
    assert [table.count("| finished |") for table in tables] == [0, 2, 1]
    data = [row["data"] for row in read_csv(tmp_path)]
    assert data[0] == data[1] != data[2]


def test_the_best_runs_that_satisfy_a_condition(sweep, tmp_path, capsys):
    arguments = [str(sweep), f"--out={tmp_path}", "--json", "--best=2"]
    assert main([*arguments, "--where=network == 'vgg13' and val/accuracy > 0"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [run["network"] for run in result["runs"]] == ["vgg13"] * 2
    assert [run["data"] for run in result["runs"]] == ["fashion_mnist"] * 2
    assert len(result["repeats"]) == 2
    assert len(read_csv(tmp_path)) == 2


@pytest.mark.parametrize(
    ("option", "code", "message"),
    [
        ("--best=0", 2, "--best 0: not a whole number from 1"),
        ("--best=-1", 2, "--best -1: not a whole number from 1"),
        ("--best=x", 2, "--best x: not a whole number from 1"),
        ("--where=val/acuracy > 0.9", 2, "val/acuracy: unknown; nearest val/accuracy"),
        ("--where=val/accuracy > 1", 3, "holds for none of 50 runs"),
    ],
)
def test_a_wrong_selection_is_one_line(option, code, message, sweep, tmp_path, capsys):
    assert main([str(sweep), f"--out={tmp_path}", option]) == code
    error = capsys.readouterr().err
    assert error.startswith("vggexp: error: --")
    assert message in error
    assert error.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_a_link_to_a_run_that_is_gone_is_named(tmp_path, capsys):
    outputs = tmp_path / "outputs"
    make_runs(outputs, 2)
    (outputs / "again").symlink_to(tmp_path / "gone")
    assert main([str(outputs)]) == 0
    assert capsys.readouterr().err == (
        f"vggexp: warning: {outputs}/again: a link whose target is gone or may not be read "
        "(left out)\n"
    )


def test_links_to_runs_are_followed_and_other_links_are_named(tmp_path, capsys):
    outputs = tmp_path / "outputs"
    make_runs(outputs, 2)
    moved, _ = sorted(outputs.iterdir())
    moved.rename(tmp_path / "moved")
    moved.symlink_to(tmp_path / "moved")
    (outputs / "again").symlink_to(tmp_path / "moved")
    (outputs / "circle").symlink_to(outputs)
    assert main([str(outputs)]) == 0
    assert capsys.readouterr().err == (
        f"vggexp: warning: {outputs}/circle: a link to a folder that is no run (left out)\n"
    )
    assert len(read_csv(outputs)) == 2


def test_a_report_of_all_names_works_twice(tmp_path, monkeypatch, capsys):
    make_runs(tmp_path, 2)
    (tmp_path / "README").touch()
    (tmp_path / "sweeps").mkdir()
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(sorted(os.listdir())) == 0
        assert capsys.readouterr().err == ""
    assert len(read_csv(tmp_path)) == 2
    assert os.listdir("sweeps") == []


@pytest.mark.parametrize("name", ["checkpoints", "exports", "evaluations", "jobs"])
def test_a_run_may_have_the_name_of_a_folder_in_runs(name, tmp_path):
    make_hostile_run(tmp_path / name, "finished")
    assert main([str(tmp_path)]) == 0
    assert [row["run"] for row in read_csv(tmp_path)] == [name]


def test_a_closed_folder_does_not_stop_the_others(tmp_path, capsys):
    make_runs(tmp_path, 3)
    without_search, closed, _ = sorted(tmp_path.iterdir())
    without_search.chmod(0o600)
    closed.chmod(0)
    with without_root_rights():
        assert main([str(tmp_path)]) == 0
        lines = capsys.readouterr().err.splitlines()
        assert main([str(closed), str(without_search)]) == 6
        assert main([str(closed / "deeper")]) == 6
        errors = capsys.readouterr().err.splitlines()
    for folder in (closed, without_search):
        folder.chmod(0o700)
    assert len(lines) == 2
    assert all(line.endswith("cannot be read: Permission denied (left out)") for line in lines)
    assert len(errors) == 2
    assert all(line.endswith("cannot be read: Permission denied") for line in errors)
    assert len(read_csv(tmp_path)) == 1


@pytest.mark.process
def test_a_report_imports_no_torch(sweep, tmp_path):
    code = (
        "import sys; from vggexp.report.__main__ import main; "
        "print(main(sys.argv[1:]), file=sys.stderr); sys.exit('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(sweep), f"--out={tmp_path}"]
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert process.stderr == "0\n"
    assert process.returncode == 0
