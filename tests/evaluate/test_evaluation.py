"""Scores: the run's own test evaluation again, averages against numpy, and what is written."""

import json
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

from tests.conftest import TINY, result, write_images
from tests.evaluate.conftest import COLOR, metrics, read_files
from vggexp.data.image_views import recorded_views
from vggexp.evaluate.__main__ import main
from vggexp.evaluate.evaluation import METRIC_NAMES, _metric_cells
from vggexp.loggers.event_files import read_image_summary
from vggexp.loggers.tensorboard import scalar_tag
from vggexp.runs.predictions import read
from vggexp.runs.records import read_run
from vggexp.training import checkpoint

pytestmark = pytest.mark.process

OVERRIDES = {
    "gray": [],
    "color and batch norm": [*COLOR, "arch.norm=batch"],
    "moving average": ["train.ema=0.9"],
    "the best weights": ["train.test_weights=best", "train.keep=weights"],
    "bf16": ["device.precision=bf16"],
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_the_default_is_the_run_s_own_test_evaluation(name, command, evaluate):
    command(*TINY, *OVERRIDES[name], "run.name=a")
    recorded = result("a")
    predictions = read(Path("outputs/a"))
    printed = evaluate("outputs/a")
    assert printed["test/accuracy"] == recorded["test/accuracy"]
    assert printed["test/loss"] == pytest.approx(recorded["test/loss"], rel=1e-5)
    counts = numpy.zeros_like(printed["confusion"])
    numpy.add.at(counts, (predictions.labels, predictions.predicted), 1)
    class_accuracy = counts.diagonal() / counts.sum(1)
    assert printed["confusion"] == counts.tolist()
    assert printed["class_accuracy"] == pytest.approx(class_accuracy.tolist())
    assert printed["mode"] == "single"
    assert printed["scales"] == [32]
    assert printed["views"] == 1
    assert printed["images"] == len(predictions.labels)
    assert printed["runs"][0]["weights_sha256"] == recorded["weights_sha256"]
    rows = [json.loads(line) for line in Path("outputs/a/metrics.jsonl").read_text().splitlines()]
    epochs = {row["step"]: row["epoch"] for row in rows}
    assert printed["runs"][0]["epoch"] == epochs[printed["checkpoint"]]


@pytest.mark.parametrize(
    ("normalize", "keys", "flags"),
    [
        ("true", ["train.test_flip=true"], ["--flip"]),
        ("false", ["train.test_shift=2"], ["--shift", "2"]),
        ("true", ["train.test_flip=true", "train.test_shift=2"], ["--flip", "--shift", "2"]),
    ],
)
def test_a_run_with_several_views_is_the_evaluation_of_them(
    normalize, keys, flags, command, evaluate, capfd
):
    tested = (*keys, f"data.normalize={normalize}", "train.test_each_epoch=true", "run.name=a")
    command(*TINY, *COLOR, *tested)
    recorded = result("a")
    printed = evaluate("outputs/a", *flags)
    last_epoch = json.loads(Path("outputs/a/metrics.jsonl").read_text().splitlines()[-1])
    for key in ("test/accuracy", "test/loss"):
        assert printed[key] == pytest.approx(recorded[key], rel=1e-5)
        assert last_epoch[key] == pytest.approx(recorded[key], rel=1e-5)
    description = recorded_views(read_run(Path("outputs/a")).config).description
    score = f"test accuracy {recorded['test/accuracy']:.4f} with {description}"
    done = command(*TINY, *COLOR, *tested)[1]
    assert done.startswith(f"already finished: {score}  ")
    assert main(["outputs/a", "--json"]) == 0
    out, note = capfd.readouterr()
    assert json.loads(out)["test/loss"] != pytest.approx(recorded["test/loss"], rel=1e-5)
    names = ", ".join(key.partition("=")[0] for key in keys)
    reason = f"tested with {description} ({names})"
    assert note == f"note: outputs/a was {reason}; give {' '.join(flags)} to evaluate it so\n"
    main(["outputs/a", "--flip", "--shift", "3"])
    assert capfd.readouterr().err == note
    validation = evaluate("outputs/a", "--split", "val")
    assert validation["val/loss"] == pytest.approx(recorded["val/loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("mode", "scales", "copies", "views"),
    [
        ("dense", "32,40", ["--flip"], 4),
        ("crops", "36", ["--flip"], 50),
        ("both", "40,32,40", [], 52),
        ("single", "9", ["--flip"], 2),
        ("dense", "40,48", ["--flip", "--shift", "35"], 20),
    ],
)
def test_each_mode(mode, scales, copies, views, command, evaluate):
    command(*TINY, *COLOR, "run.name=a")
    printed = evaluate("outputs/a", "--mode", mode, "--scales", scales, *copies)
    assert printed["views"] == views
    assert printed["test/accuracy"] >= 0
    assert printed["test/accuracy"] <= printed["test/top5_accuracy"]
    assert printed["test/top5_accuracy"] == 1
    assert printed["scales"] == sorted({int(scale) for scale in scales.split(",")})


@pytest.mark.parametrize("mode", ["dense", "crops", "both"])
def test_at_the_training_size_every_mode_is_single(mode, command, evaluate):
    command(*TINY, "run.name=a")
    assert metrics(evaluate("outputs/a", "--mode", mode)) == metrics(evaluate("outputs/a"))


@pytest.mark.parametrize(("arch", "size"), [("lenet", 28), ("alexnet", 64)])
def test_dense_evaluates_the_classic_networks(arch, size, command, evaluate):
    tiny = [override for override in TINY if not override.startswith("arch.")]
    command(*tiny, f"arch={arch}", f"data.resize={size}", "train.epochs=1", "run.name=a")
    printed = evaluate("outputs/a", "--mode", "dense", "--scales", f"{size},{size + 17}")
    assert printed["images"] == 19


def test_several_runs_average_their_softmax(command, evaluate, capfd):
    sizes = {"a": 32, "b": 32, "c": 40}  # each run is evaluated at its own training size
    for seed, (name, size) in enumerate(sizes.items()):
        command(*TINY, f"data.resize={size}", f"seed={seed}", f"run.name={name}")
    folders = [f"outputs/{name}" for name in sizes]
    predictions = [read(Path(folder)) for folder in folders]
    labels = predictions[0].labels
    printed = evaluate("outputs/a", "--with", "outputs/b", "outputs/c")
    mean = numpy.mean([run.probs.astype(float) for run in predictions], axis=0)
    loss = -numpy.log(mean[numpy.arange(len(mean)), labels]).mean()
    assert printed["test/accuracy"] == (mean.argmax(1) == labels).mean()
    assert printed["test/loss"] == pytest.approx(loss)
    assert printed["with"] == folders[1:]
    assert [run["run"] for run in printed["runs"]] == folders
    assert [run["scales"] for run in printed["runs"]] == [[32], [32], [40]]
    accuracies = [result(name)["test/accuracy"] for name in sizes]
    assert [run["test/accuracy"] for run in printed["runs"]] == accuracies
    assert Path(printed["file"]).name.startswith("single-32-with2-")
    assert evaluate("outputs/a", "--with", "outputs/c", "outputs/b")["file"] == printed["file"]
    assert evaluate("outputs/a", "--with", "outputs/b")["file"] != printed["file"]
    main(["outputs/a", "--with", "outputs/b"])
    assert "| mean of their softmax |" in capfd.readouterr().out


def test_an_average_with_other_weights_of_a_paused_run_has_a_file_of_its_own(command):
    command(*TINY, "run.name=a")
    for name, seed, epoch in (("b", 1, 1), ("c", 2, 1), ("b", 1, 2)):
        command(*TINY, "train.epochs=4", f"run.until={epoch}", f"seed={seed}", f"run.name={name}")
        assert main(["outputs/a", "--with", f"outputs/{name}"]) == 0
    files = list(Path("outputs/a/evaluations").glob("single-32-with1-*.json"))
    partners = [json.loads(file.read_text())["runs"][1] for file in files]
    assert len({partner["weights_sha256"] for partner in partners}) == 3


def test_the_validation_images_are_those_of_the_run(command, evaluate):
    command(*TINY, "data.val_fraction=0.25", "run.name=a")
    printed = evaluate("outputs/a", "--split", "val")
    assert printed["split"] == "val"
    assert printed["images"] == 24
    assert printed["val/accuracy"] == result("a")["val/accuracy"]
    assert printed["val/loss"] == pytest.approx(result("a")["val/loss"], rel=1e-5)
    assert not metrics(printed)
    assert Path(printed["file"]).name == "val-single-32.json"
    assert read_image_summary(Path(printed["file"]).with_suffix(""), "val/confusion")


def test_a_checkpoint_is_evaluated_by_its_step(command, evaluate, capfd):
    command(*TINY, "train.keep=all", "train.test_each_epoch=true", "run.name=a")
    rows = [json.loads(line) for line in Path("outputs/a/metrics.jsonl").read_text().splitlines()]
    tested = evaluate("outputs/a")
    assert tested["split"] == "test"
    assert tested["checkpoint"] == 6
    for row in rows:
        printed = evaluate("outputs/a", "--checkpoint", str(row["step"]))
        assert printed["checkpoint"] == row["step"]
        assert printed["test/accuracy"] == row["test/accuracy"]
        assert printed["runs"][0]["epoch"] == row["epoch"]
        assert Path(printed["file"]).name == f"single-32-step{row['step']}.json"
    assert printed["runs"] == tested["runs"]  # the last checkpoint is the tested one
    assert main(["outputs/a", "--checkpoint", "3", "--split", "val"]) == 0
    out = capfd.readouterr().out
    heading = "single at 32 px: 10 validation images seen once, weights of step 3, cpu "
    assert out.startswith(heading)


def test_a_checkpoint_of_a_paused_run_is_not_the_newest(command, evaluate, capfd):
    fp32 = "device.precision=fp32"
    command(*TINY, fp32, "train.keep=all", "train.epochs=3", "run.until=2", "run.name=a")
    printed = evaluate("outputs/a", "--checkpoint", "3")
    assert printed["runs"][0]["epoch"] == 1
    assert printed["runs"][0]["paused_at"] is None
    assert Path(printed["file"]).name == "single-32-step3.json"
    assert main(["outputs/a"]) == 0
    out, error = capfd.readouterr()
    assert "weights of step 6, cpu fp32, paused after epoch 2\n" in out
    warning = "outputs/a is paused after epoch 2 of 3: using its newest checkpoint"
    assert error == f"warning: {warning}\n"


def test_a_huge_loss_has_four_digits():
    metrics = dict.fromkeys(METRIC_NAMES, 0.5) | {"loss": 2.44123e13}
    cells = _metric_cells({f"test/{name}": value for name, value in metrics.items()})
    assert cells == ["0.5000", "0.5000", "2.441e+13", "0.5000"]


def test_what_is_written(command, evaluate):
    command(*TINY, "run.name=a")
    folder = Path("outputs/a")
    before = read_files(folder)
    printed = evaluate("outputs/a", "--mode", "dense", "--scales", "32,48", "--flip")
    assert read_files(folder) == before
    path = folder / "evaluations" / "dense-32-48-flip.json"
    assert printed.pop("file") == str(path)
    assert json.loads(path.read_text()) == printed
    # The same evaluation replaces the result.
    evaluate("outputs/a", "--mode", "dense", "--scales", "48,32", "--flip")
    names = sorted(path.name for path in (folder / "evaluations").iterdir())
    assert names == ["dense-32-48-flip", "dense-32-48-flip.json"]
    code, out, _ = command(*TINY, "run.name=a")
    assert code == 0
    assert out.startswith("already finished")
    assert main(["outputs/a"]) == 0


def test_tensorboard_shows_the_evaluation_below_the_run(command, evaluate):
    command(*TINY, "run.name=a")
    printed = evaluate("outputs/a", "--mode", "dense", "--scales", "48")
    evaluate("outputs/a", "--mode", "dense", "--scales", "48")
    runs = EventMultiplexer().AddRunsFromDirectory("outputs").Reload().Runs()
    assert runs.keys() == {"a", "a/evaluations/dense-48"}
    folder = Path("outputs/a/evaluations/dense-48")
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    points = {}
    for tag in events.Tags()["scalars"]:
        points[tag] = [(point.step, point.value) for point in events.Scalars(tag)]
    expected = {}
    for key, value in metrics(printed).items():
        expected[scalar_tag(key)] = [(2, pytest.approx(value))]
    assert points == expected
    (tensor,) = events.Tensors("evaluation")
    text = tensor.tensor_proto.string_val[0].decode()
    assert text.startswith("dense at 48 px: 19 test images seen once, weights of step 6, cpu ")
    assert read_image_summary(folder, "test/confusion")


def test_an_image_folder_is_evaluated_with_whole_images(command, evaluate, tmp_path):
    images = tmp_path / "images"
    write_images(images, {"train": 10, "test": 3}, lambda index: (40 + index, 60 - index), "png")
    overrides = [
        "data=image_folder",
        "data.root=images",
        "data.resize=32",
        "data.batch_size=4",
        "data.workers=1",
        "device.threads=1",
        "augment=scale_jitter",
        "arch=vgg_digits",
        "train.epochs=1",
    ]
    for cache in ("none", "ram"):
        command(*overrides, f"data.cache={cache}", f"run.name={cache}")
        folder = f"outputs/{cache}"
        printed = evaluate(folder)
        assert printed["test/accuracy"] == result(cache)["test/accuracy"]
        assert printed["images"] == 6
        single = evaluate(folder, "--scales", "36")
        dense = evaluate(folder, "--mode", "dense", "--scales", "36")
        assert metrics(dense) != metrics(single)
    content = (images / "test/dog/2.png").read_bytes()
    (images / "test/cat/0.png").write_bytes(content)
    assert main(["outputs/none"]) == 4
    shutil.rmtree(images)
    assert main(["outputs/none"]) == 3


def test_on_a_machine_without_the_run_s_device(command, capfd):
    command(*TINY, "run.name=a")
    config = Path("outputs/a/config.yaml")
    config.write_text(config.read_text().replace("name: cpu", "name: mps"))
    assert main(["outputs/a"]) == 0
    out, error = capfd.readouterr()
    assert error == "warning: no mps device here: evaluated on the processor\n"
    assert f"| outputs/a | {result('a')['test/accuracy']:.4f} " in out


@pytest.mark.parametrize(
    ("weight", "code", "reason"),
    [
        (1e38, 5, "at 32 px not all probabilities are finite in"),
        (
            torch.nan,
            4,
            "outputs/a: does not fit its config.yaml: weights.0.0.0.weight holds NaN",
        ),
    ],
)
def test_weights_that_are_not_finite(command, capfd, weight, code, reason):
    command(*TINY, "run.name=a")
    path = max(Path("outputs/a/checkpoints").iterdir())
    content = checkpoint.load(path)
    for tensor in checkpoint.select_eval_weights(content).values():
        tensor.fill_(weight)
    checkpoint.save(path, content)
    assert main(["outputs/a"]) == code
    assert reason in capfd.readouterr().err
