"""The door: the run's own test again, fusion against numpy, what is written and where, and what is refused."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

from tests.conftest import TINY, result, write_pictures
from vggexp.evaluate.__main__ import main
from vggexp.report.mistakes import read_image_summary
from vggexp.runs.directory import write_result
from vggexp.runs.predictions import read

COLOUR = ["data.channels=3", "data.classes=4"]
OWN = {
    "grey": [],
    "colour and batch norm": [*COLOUR, "arch.norm=batch"],
    "moving average": ["train.ema=0.9"],
    "the best weights": ["train.test_weights=best", "train.keep=weights"],
    "bf16": ["device.precision=bf16"],
}


@pytest.fixture
def evaluated(capfd):
    """evaluated("outputs/a", ...) -> what --json prints."""

    def run(*argv):
        assert main([*argv, "--json"]) == 0
        out, err = capfd.readouterr()
        assert err == ""
        return json.loads(out)

    return run


def numbers(found, prefix="test/"):
    return {key: value for key, value in found.items() if key.startswith(prefix)}


@pytest.mark.parametrize("name", OWN)
def test_by_default_it_is_the_runs_own_test(name, command, evaluated):
    command(*TINY, *OWN[name], "run.name=a")
    there, kept = result("a"), read(Path("outputs/a"))
    found = evaluated("outputs/a")
    assert found["test/accuracy"] == there["test/accuracy"]
    assert found["test/loss"] == pytest.approx(there["test/loss"], rel=1e-5)
    counts = numpy.zeros_like(found["confusion"])
    numpy.add.at(counts, (kept.labels, kept.predicted), 1)
    assert found["confusion"] == counts.tolist()
    assert found["class_accuracy"] == pytest.approx((counts.diagonal() / counts.sum(1)).tolist())
    assert (found["mode"], found["scales"], found["views"], found["images"]) == (
        "single",
        [32],
        1,
        len(kept.labels),
    )
    assert found["runs"][0]["weights_sha256"] == there["weights_sha256"]


@pytest.mark.parametrize(
    ("mode", "scales", "flip", "views"),
    [
        ("dense", "32,40", True, 4),
        ("crops", "36", True, 50),
        ("both", "40,32,40", False, 52),
        ("single", "9", True, 2),
    ],
)
def test_each_mode(mode, scales, flip, views, command, evaluated):
    command(*TINY, *COLOUR, "run.name=a")
    found = evaluated("outputs/a", "--mode", mode, "--scales", scales, *["--flip"] * flip)
    assert (
        found["views"] == views and 0 <= found["test/accuracy"] <= found["test/top5_accuracy"] == 1
    )
    assert found["scales"] == sorted({int(word) for word in scales.split(",")})


@pytest.mark.parametrize("mode", ["dense", "crops", "both"])
def test_at_the_training_size_every_mode_is_single(mode, command, evaluated):
    command(*TINY, "run.name=a")
    assert numbers(evaluated("outputs/a", "--mode", mode)) == numbers(evaluated("outputs/a"))


@pytest.mark.parametrize(("arch", "size"), [("lenet", 28), ("alexnet", 64)])
def test_the_classic_networks_are_dense_too(arch, size, command, evaluated):
    tiny = [key for key in TINY if not key.startswith("arch.")]
    command(*tiny, f"arch={arch}", f"data.resize={size}", "train.epochs=1", "run.name=a")
    found = evaluated("outputs/a", "--mode", "dense", "--scales", f"{size},{size + 17}")
    assert found["images"] == 19


def test_fusion_is_the_mean_of_the_soft_max(command, evaluated, capfd):
    names = ("a", "b", "c")
    for seed, name in enumerate(names):
        size = "data.resize=40" if name == "c" else "data.resize=32"  # each run at its own
        command(*TINY, size, f"seed={seed}", f"run.name={name}")
    kept = [read(Path("outputs") / name) for name in names]
    found = evaluated("outputs/a", "--with", "outputs/b", "outputs/c")
    mean = numpy.mean([each.scores.astype(float) for each in kept], axis=0)
    assert found["test/accuracy"] == (mean.argmax(1) == kept[0].labels).mean()
    loss = -numpy.log(mean[numpy.arange(len(mean)), kept[0].labels]).mean()
    assert found["test/loss"] == pytest.approx(loss)
    assert (
        [run["run"] for run in found["runs"]]
        == ["outputs/a", *found["with"]]
        == [f"outputs/{n}" for n in names]
    )
    assert [run["scales"] for run in found["runs"]] == [[32], [32], [40]]
    assert [run["test/accuracy"] for run in found["runs"]] == [
        result(name)["test/accuracy"] for name in names
    ]
    assert Path(found["file"]).name.startswith("single-32-with2-")
    assert evaluated("outputs/a", "--with", "outputs/c", "outputs/b")["file"] == found["file"]
    assert evaluated("outputs/a", "--with", "outputs/b")["file"] != found["file"]
    main(["outputs/a", "--with", "outputs/b"])
    assert "| mean of their soft-max |" in capfd.readouterr().out


def files(folder):
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "evaluations" not in path.parts
    }


def test_what_is_written(command, evaluated):
    command(*TINY, "run.name=a")
    folder = Path("outputs/a")
    before = files(folder)
    found = evaluated("outputs/a", "--mode", "dense", "--scales", "32,48", "--flip")
    assert files(folder) == before
    path = folder / "evaluations" / "dense-32-48-flip.json"
    assert found.pop("file") == str(path) and json.loads(path.read_text()) == found
    evaluated(
        "outputs/a", "--mode", "dense", "--scales", "48,32", "--flip"
    )  # the same again replaces it
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "dense-32-48-flip",
        "dense-32-48-flip.json",
    ]
    code, out, _ = command(*TINY, "run.name=a")
    assert code == 0 and out.startswith("already finished")
    assert main(["outputs/a"]) == 0


def test_tensorboard_shows_it_below_the_run(command, evaluated):
    command(*TINY, "run.name=a")
    found = evaluated("outputs/a", "--mode", "dense", "--scales", "48")
    evaluated("outputs/a", "--mode", "dense", "--scales", "48")
    runs = EventMultiplexer().AddRunsFromDirectory("outputs").Reload().Runs()
    assert runs.keys() == {"a", "a/evaluations/dense-48"}
    below = Path("outputs/a/evaluations/dense-48")
    events = EventAccumulator(str(below), size_guidance={"tensors": 0}).Reload()
    points = {
        tag: [(point.step, point.value) for point in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }
    assert points == {tag: [(2, pytest.approx(value))] for tag, value in numbers(found).items()}
    (text,) = events.Tensors("evaluation")
    assert (
        text.tensor_proto.string_val[0]
        .decode()
        .startswith("dense at 48 px: 19 images seen once, cpu ")
    )
    assert read_image_summary(below, "test/confusion")


def test_a_folder_of_pictures_is_seen_whole(command, evaluated, tmp_path):
    write_pictures(
        tmp_path / "pictures",
        {"train": 10, "test": 3},
        lambda index: (40 + index, 60 - index),
        "png",
    )
    own = [
        "data=image_folder",
        "data.root=pictures",
        "data.resize=32",
        "data.batch_size=4",
        "device.threads=1",
    ]
    own += ["data.workers=1", "augment=scale_jitter", "arch=vgg_digits", "train.epochs=1"]
    for cache in ("none", "ram"):
        command(*own, f"data.cache={cache}", f"run.name={cache}")
        found = evaluated(f"outputs/{cache}")
        assert found["test/accuracy"] == result(cache)["test/accuracy"] and found["images"] == 6
        single = numbers(evaluated(f"outputs/{cache}", "--scales", "36"))
        assert numbers(evaluated(f"outputs/{cache}", "--mode", "dense", "--scales", "36")) != single
    (tmp_path / "pictures/test/cat/0.png").write_bytes(
        (tmp_path / "pictures/test/dog/2.png").read_bytes()
    )
    assert main(["outputs/none"]) == 4
    shutil.rmtree("pictures")
    assert main(["outputs/none"]) == 3


def test_on_a_machine_without_the_runs_device(command, capfd):
    command(*TINY, "run.name=a")
    config = Path("outputs/a/config.yaml")
    config.write_text(config.read_text().replace("name: cpu", "name: mps"))
    assert main(["outputs/a"]) == 0
    out, err = capfd.readouterr()
    assert err == "warning: no mps device here: evaluated on the processor\n"
    assert f"| outputs/a | {result('a')['test/accuracy']:.4f} " in out


def test_a_diverged_network_is_told(command, capfd, monkeypatch):
    command(*TINY, "run.name=a")
    monkeypatch.setattr(
        "vggexp.evaluate.views.MultiViewPredictor._forward",
        lambda *_: torch.full((19, 10), torch.nan),
    )
    assert main(["outputs/a"]) == 5
    assert "at 32 px not all scores are finite in" in capfd.readouterr().err


def test_stopped(command, capfd, monkeypatch):
    command(*TINY, "run.name=a")
    monkeypatch.setattr(
        "vggexp.evaluate.views.MultiViewPredictor._forward",
        lambda *_: signal.raise_signal(signal.SIGINT),
    )
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored where tests run in the background
    assert main(["outputs/a"]) == 130
    signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().err == "vggexp: error: stopped by Ctrl-C: nothing was written\n"
    assert not Path("outputs/a/evaluations").exists()


def test_the_table(command, capfd):
    command(*TINY, "data.classes=25", "data.images=500", "run.name=many")
    command(*TINY, "data.classes=3", "run.name=few")
    assert main(["outputs/few", "--flip"]) == main(["outputs/many"]) == 0
    few, many = capfd.readouterr().out.split("single at ")[1:]
    assert few.startswith("32 px, each mirrored too: 19 images seen 2 times, cpu ")
    assert "| class | images | accuracy | 0 " in few and few.count("\n| ") == 2 + 4
    assert "of 25 classes, the worst" in many and many.count("\n| ") == 2 + 21
    assert few.splitlines()[-1] == "written to outputs/few/evaluations/single-32-flip.json"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run, others that differ from it, and what is no finished run."""
    from vggexp.__main__ import main as trains

    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, *own in [
            ("a",),
            ("seeds", "seed=1"),
            ("images", "data.images=160"),
            ("digits", "data=digits"),
        ]:
            tiny = TINY if name != "digits" else [key for key in TINY if not key.startswith("data")]
            patch.setattr("sys.argv", ["vggexp"])
            assert (
                trains([*tiny, *own, "data.resize=32", "train.epochs=1", f"run.name={name}"]) == 0
            )
    shutil.copytree(folder / "outputs/a", folder / "outputs/stopped")
    write_result(folder / "outputs/stopped", "interrupted")
    shutil.copytree(folder / "outputs/a", folder / "outputs/empty")
    shutil.rmtree(folder / "outputs/empty/checkpoints")
    shutil.copytree(folder / "outputs/a", folder / "outputs/other")
    config = folder / "outputs/other/config.yaml"
    config.write_text(config.read_text().replace("dropout: 0.5", "width_: 1"))
    (folder / "outputs/none").mkdir()
    return folder


REFUSED = [
    ([], 2, "the following arguments are required: RUN"),
    (["outputs/x"], 2, "outputs/x: no such directory"),
    (["outputs/a", "--with", "outputs/x"], 2, "outputs/x: no such directory"),
    (["outputs/a", "--mode", "sparse"], 2, "argument --mode: invalid choice: 'sparse'"),
    (
        ["outputs/a", "--scales", "32,x"],
        2,
        "argument --scales: 32,x: wanted 1 to 32 sizes of 1..4096 pixels",
    ),
    (["outputs/a", "--scales", "0"], 2, "argument --scales: 0: wanted"),
    (["outputs/a", "--scales", ""], 2, "argument --scales: : wanted"),
    (["outputs/a", "--scales", ",".join(map(str, range(1, 40)))], 2, "wanted 1 to 32 sizes"),
    (
        ["outputs/a", "--mode", "dense", "--scales", "40,31"],
        2,
        "--scales 31: too small for the dense network of",
    ),
    (["outputs/a", "--mode", "both", "--scales", "8"], 2, "was trained at 32 px; at least 32"),
    (["outputs/a", "--with", "outputs/../outputs/a"], 2, "given twice"),
    (["outputs"], 4, "outputs: not the folder of a run"),
    (["outputs/none"], 4, "outputs/none: not the folder of a run"),
    (["outputs/stopped"], 4, "outputs/stopped is interrupted; only finished runs can be evaluated"),
    (["outputs/a", "--with", "outputs/stopped"], 4, "outputs/stopped is interrupted"),
    (
        ["outputs/a", "--with", "outputs/images"],
        4,
        "--with outputs/images: not the test images of outputs/a (another",
    ),
    (
        ["outputs/a", "--with", "outputs/digits"],
        4,
        "not the test images of outputs/a (digits, not synthetic)",
    ),
]


@pytest.mark.parametrize(("argv", "code", "told"), REFUSED)
def test_refused_before_torch_is_imported(argv, code, told, runs):
    script = "import sys; from vggexp.evaluate import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    before = files(runs)
    ended = subprocess.run(
        [sys.executable, "-c", script, *argv],
        cwd=runs,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.stdout == f"{code} False\n"
    assert (
        ended.stderr.startswith("vggexp: error: ")
        and ended.stderr.count("\n") == 1
        and told in ended.stderr
    )
    assert files(runs) == before and not list(runs.rglob("evaluations"))


@pytest.mark.parametrize(
    ("name", "told"),
    [("empty", "holds no checkpoint of step"), ("other", "not a configuration of this version")],
)
def test_a_run_that_cannot_be_read_back(name, told, runs, monkeypatch, capfd):
    monkeypatch.chdir(runs)
    assert main([f"outputs/{name}"]) == 4
    error = capfd.readouterr().err
    assert told in error and error.count("\n") == 1


def test_runs_that_may_be_fused(runs, monkeypatch, evaluated):
    monkeypatch.chdir(runs)
    assert evaluated("outputs/a", "--with", "outputs/seeds")["with"] == ["outputs/seeds"]
    shutil.rmtree(runs / "outputs/a/evaluations")
