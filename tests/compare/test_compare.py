"""Runs compared: what differs, how they are grouped and tested, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import yaml
from scipy import stats

from tests.conftest import TINY
from vggexp.compare.__main__ import main
from vggexp.runs.directory import write_result
from vggexp.runs.jsonl import write_json

IMAGES = 200
LABELS = numpy.arange(IMAGES) % 4
CODE = {"versions": {"torch": "2.14.1"}, "commit": "a" * 40, "dirty": False}
FILES = {"train-images-idx3-ubyte": "1", "t10k-images-idx3-ubyte": "2"}
RIGHT = {
    "a": [150, 160, 155, 158],
    "b": [140, 153, 143, 152],
    "c": [100, 90, 80, 95],
}  # images, by seed


@pytest.fixture
def made(tmp_path, monkeypatch):
    """made(name, seed=0, ...) -> name, of a finished run in the current folder."""
    monkeypatch.chdir(tmp_path)

    def make(
        name,
        seed=0,
        right=150,
        lr=0.1,
        labels=LABELS,
        state="finished",
        val=0.5,
        files=FILES,
        **environment,
    ):
        folder = Path(name)
        folder.mkdir(parents=True)
        config = {
            "data": {"name": "fashion_mnist", "workers": seed},
            "optimizer": {"lr": lr},
            "seed": seed,
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        write_json(folder / "env.json", CODE | {"host": "x", "data": files} | environment)
        hits = numpy.roll(numpy.arange(len(labels)) < right, seed)
        scores = numpy.eye(4, dtype=numpy.float32)[numpy.where(hits, labels, (labels + 1) % 4)]
        numpy.savez_compressed(folder / "predictions.npz", scores=scores, labels=labels)
        write_result(folder, state, **{"test/accuracy": right / len(labels), "val/accuracy": val})
        return name

    return make


@pytest.fixture
def compared(capfd):
    """compared(run, ...) -> what --json prints."""

    def run(*argv):
        assert main([*argv, "--json"]) == 0
        return json.loads(capfd.readouterr().out)

    return run


def setting(made, name, seeds, **own):
    lr = 0.1 + sorted(RIGHT).index(name) / 10
    return [made(f"{name}{seed}", seed, RIGHT[name][seed], lr, **own) for seed in seeds]


@pytest.mark.parametrize(
    ("seeds", "test", "told"),
    [
        ((range(4), range(4)), "paired t", " with 4 seeds (paired t, p = "),
        ((range(4), range(3)), "Welch t", " with 4 and 3 seeds (Welch t, p = "),
        (
            ([0], range(4)),
            None,
            " are not tested with 1 and 4 seeds, as A has no repeats: difference +0.0150.",
        ),
        (
            ([1], [1]),
            "McNemar",
            "on this test set (p = 0.0156, difference +0.0350, 95 % interval +0.0063..+0.0350)",
        ),
    ],
)
def test_two_settings(seeds, test, told, made, compared):
    names = [
        name for label, of in zip("ab", seeds, strict=True) for name in setting(made, label, of)
    ]
    found = compared(*reversed(names), *names)
    assert [group["group"] for group in found["groups"]] == ["A", "B"]
    (pair,) = compared(*names)["pairs"]
    first, second = (
        [RIGHT[label][seed] / IMAGES for seed in of] for label, of in zip("ab", seeds, strict=True)
    )
    assert pair["difference"] == pytest.approx(numpy.mean(first) - numpy.mean(second))
    assert pair["test"] == test and told in pair["sentence"]
    if test and test != "McNemar":
        options = {"equal_var": False} if test == "Welch t" else {}
        reference = (stats.ttest_ind if options else stats.ttest_rel)(first, second, **options)
        assert (pair["p"], pair["holm"]) == pytest.approx([reference.pvalue] * 2)
        assert pair["interval"] == pytest.approx(list(reference.confidence_interval()))
        assert (
            pair["distinguishable"]
            == (reference.pvalue < 0.05)
            == (" not " not in pair["sentence"])
        )
    if seeds[0] != seeds[1]:
        assert pair["mcnemar"] == {"refused": "not the same seeds"}


def test_an_image_counts_once_however_many_the_seeds(made, compared):
    names = [made(f"a{seed}", seed, 150) for seed in range(3)] + [
        made(f"b{seed}", seed, 140, 0.2) for seed in range(3)
    ]
    counts = compared(*names)["pairs"][0]["mcnemar"]
    # Of each seed ten images, shifted by one: 140..149, 141..150, 142..151.
    assert (counts["only_first"], counts["only_second"], counts["images"]) == (12, 0, IMAGES)
    assert counts["p"] == pytest.approx(stats.binomtest(12, 12).pvalue)


def test_several_settings_are_corrected(made, compared):
    (names,) = [[name for label in "abc" for name in setting(made, label, range(4))]]
    pairs = compared(*names)["pairs"]
    assert [(pair["first"], pair["second"]) for pair in pairs] == [
        ("A", "B"),
        ("A", "C"),
        ("B", "C"),
    ]
    ps = sorted(pair["p"] for pair in pairs)
    assert min(pair["holm"] for pair in pairs) == pytest.approx(3 * ps[0])
    assert all("Holm's p" in pair["sentence"] for pair in pairs)


@pytest.mark.parametrize(("missing", "base"), [(False, "D"), (True, "A")])
def test_many_settings_are_tested_against_one(missing, base, made, compared):
    vals = [0.5, 0.6, 0.4, 0.9, 0.7]
    names = [
        made(str(at), right=190 - at, lr=at + 1.0, val=None if missing and at == 2 else val)
        for at, val in enumerate(vals)
    ]
    found = compared(*names)
    assert found["base"] == base
    assert [pair["second"] for pair in found["pairs"]] == [
        label for label in "ABCDE" if label != base
    ]
    assert found["notes"][0].startswith(f"note: of 5 groups, only the pairs with {base}, the ")


def test_what_differs(made, compared, capfd):
    old, dirty = CODE | {"versions": {"torch": "2.13"}}, {"dirty": True, "host": "y"}
    names = [made("a0"), made("a1", 1, **dirty), made("b0", lr=0.2, **old)]
    found = compared(*names)
    assert found["differences"] == {
        "configuration": {"optimizer.lr": {"A": [0.1, 0.1], "B": [0.2]}},
        "code": {
            "torch": {"A": ["2.14.1"] * 2, "B": ["2.13"]},
            "dirty": {"A": [False, True], "B": [False]},
        },
        "machine": {"host": {"A": ["x", "y"], "B": ["x"]}},
        "data": {},
    }
    assert [note.split(":")[0] for note in found["notes"]] == ["note", "note"]
    main(names)
    lines = capfd.readouterr().out.splitlines()
    assert "| code          | dirty        | false  | A (1 of 2 runs), B |" in lines
    assert "the same in all runs: data" in lines


def test_json_has_no_infinity(made, capfd):
    assert main([made("a"), made("b", lr=float("inf")), "--json"]) == 0
    assert "Infinity" not in capfd.readouterr().out


def test_before_and_after(made, compared):
    names = [
        made(f"{when}/{seed}", seed, commit=when) for when in ("before", "after") for seed in (0, 1)
    ]
    found = compared(*names)
    assert [group["runs"] for group in found["groups"]] == [names[:2], names[2:]]
    assert found["differences"]["configuration"] == {}
    (pair,) = found["pairs"]
    assert (pair["difference"], pair["p"], pair["distinguishable"], pair["mcnemar"]["p"]) == (
        0,
        None,
        None,
        1,
    )
    assert "as their values show no spread" in pair["sentence"]


def test_one_setting(made, compared, capfd):
    names = [made(f"a{seed}", seed, 150 + seed) for seed in range(2)]
    found = compared(*names)
    assert (len(found["groups"]), found["pairs"]) == (1, [])
    assert main(names) == 0
    assert "One group of 2 runs that differ only in the seed" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("other", "told", "tests"),
    [
        (
            {"files": FILES | {"t10k-images-idx3-ubyte": "3"}},
            "other contents of t10k-images-idx3-ubyte",
            "Welch t",
        ),
        (
            {"files": FILES | {"train-images-idx3-ubyte": "3"}},
            "other contents of train-images-idx3-ubyte",
            "paired t",
        ),
        ({"labels": LABELS[::-1]}, "other test labels", "Welch t"),
        ({"labels": LABELS[:160]}, "other test labels", "Welch t"),
    ],
)
def test_different_data_is_refused_or_said(other, told, tests, made, compared, capfd):
    names = [*setting(made, "a", [0, 1]), *setting(made, "b", [0, 1], **other)]
    assert main(names) == 4
    refusal = f"vggexp: error: the runs are not of the same data: {told}; --different-data compares their means all the"
    assert capfd.readouterr() == ("", refusal + " same\n")
    found = compared("--different-data", *names)
    (pair,) = found["pairs"]
    assert found["notes"][0].startswith(f"warning: the runs are not of the same data ({told})")
    assert pair["test"] == tests and ("refused" in pair["mcnemar"]) == (tests == "Welch t")


def test_a_run_without_a_fingerprint_is_told(made, compared):
    names = [made("a"), made("b", lr=0.2)]
    Path("b/env.json").unlink()
    assert compared(*names)["notes"] == [
        "warning: no data fingerprint in b: only the test labels were compared",
        "note: the code differs as well (torch, commit, dirty): a difference may be its",
    ]


def damaged(name, **changed):
    path = Path("b") / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


@pytest.mark.parametrize(
    ("change", "argv", "code", "told"),
    [
        (None, [], 2, "two different run directories or more are compared, given 0"),
        (None, ["a"], 2, "given 1; see --help"),
        (None, ["a", "./a"], 2, "given 2 times the same"),
        (None, ["a", "b", "--nosuch"], 2, "unrecognized arguments: --nosuch"),
        (None, ["a", "none", "nil\n"], 2, "none, nil\\n: no such directory"),
        (None, ["a", "."], 4, ".: not the folder of a run, it has no config.yaml"),
        (
            lambda: damaged("result.json", state="interrupted"),
            ["a", "b"],
            4,
            "b is interrupted; only finished runs",
        ),
        (lambda: damaged("result.json", state="running"), ["a", "b"], 4, "b is interrupted"),
        (lambda: Path("b/result.json").unlink(), ["a", "b"], 4, "b is not started"),
        (
            lambda: damaged("result.json", **{"test/accuracy": None}),
            ["a", "b"],
            4,
            "test/accuracy is null, wanted 0..1",
        ),
        (
            lambda: damaged("result.json", **{"val/accuracy": "x"}),
            ["a", "b"],
            4,
            "val/accuracy is x, wanted 0..1",
        ),
        (
            lambda: damaged("result.json", **{"test/accuracy": 0.7}),
            ["a", "b"],
            4,
            "not of this run: accuracy 0.7500, but",
        ),
        (
            lambda: Path("b/config.yaml").write_text("seed: x"),
            ["a", "b"],
            4,
            "seed=x: not a whole number",
        ),
        (
            lambda: Path("b/predictions.npz").write_text("x"),
            ["a", "b"],
            4,
            "b/predictions.npz: cannot be read",
        ),
        (lambda: Path("b/env.json").write_text("{"), ["a", "b"], 4, "b/env.json: cannot be read"),
    ],
)
def test_a_refusal_is_one_line(change, argv, code, told, made, capfd):
    made("a"), made("b", lr=0.2)
    if change:
        change()
    assert main(argv) == code
    out, error = capfd.readouterr()
    assert (
        (out, error.count("\n")) == ("", 1)
        and error.startswith("vggexp: error: ")
        and told in error
    )


def test_trained_runs_without_torch(command):
    for seed in (0, 1):
        for lr in (0.01, 0.05):
            assert (
                command(*TINY, f"seed={seed}", f"optimizer.lr={lr}", f"run.name={lr}-{seed}")[0]
                == 0
            )
    code = "import sys, vggexp.compare as c; print(c.main(sys.argv[1:]), 'torch' in sys.modules, 'hydra' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    arguments = [sys.executable, "-c", code, *sorted(map(str, Path("outputs").iterdir()))]
    ended = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    lines = ended.stdout.splitlines()
    assert (lines[-1], ended.stderr) == ("0 False False", "")
    assert "| configuration | optimizer.lr | 0.05  | B        |" in lines
    assert [
        line
        for line in lines
        if line.startswith("A (optimizer.lr=0.01) ") and " B (optimizer.lr=0.05) " in line
    ]
