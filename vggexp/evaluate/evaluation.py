"""Evaluates runs as the VGG paper does, alone or with their softmax averaged."""

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from vggexp.config.schema import Config
from vggexp.data.image_views import ImageViews
from vggexp.errors import CheckpointError, DivergedError, ResourceError
from vggexp.evaluate.views import MultiViewPredictor, count_views
from vggexp.formatting import SPLIT_NAMES, format_metric, markdown_table, printable, shorten
from vggexp.loggers.console import Console
from vggexp.runner import build
from vggexp.runner.hardware import is_available, setup_device
from vggexp.runner.load import load_test_data, load_tested_checkpoint, test_only_config
from vggexp.runs.confusion import MAX_MATRIX_CLASSES, Confusions, count_confusions
from vggexp.runs.data_root import locate_data
from vggexp.runs.directory import read_result
from vggexp.runs.jsonl import write_json
from vggexp.system import memory
from vggexp.system.files import make_inner_dir, os_error_as_resource_error
from vggexp.training.checkpoint import select_eval_weights, weights_sha256
from vggexp.training.metrics import classification_metrics

FOLDER = "evaluations"  # in the run directory
# A terminal has room for a confusion matrix of this many classes.
# Of more classes, the report shows this many with the lowest accuracy.
MAX_CLASSES_SHOWN = 20
MAX_NAME_CHARS = 30  # characters of a class name
METRIC_NAMES = {  # behind the split and a slash
    "accuracy": "accuracy",
    "top5_accuracy": "top 5",
    "loss": "loss",
    "calibration_error": "calibration error",
}


class EvalOptions(NamedTuple):
    """Views of each image, and which weights and images are evaluated.

    Args:
        scales: pixels of the shorter side; None: each run's training size.
        split: test or val.
        checkpoint: step of a checkpoint of the only run; None: the tested weights.
        data: folder of the runs' data; None: data.root of each run.
    """

    mode: str
    scales: tuple[int, ...] | None
    image_views: ImageViews
    split: str = "test"
    checkpoint: int | None = None
    data: Path | None = None


@dataclass(frozen=True)
class RunScores:
    """Scores of one run on its images.

    Args:
        run: the run directory.
        checkpoint: step of the evaluated weights.
        epoch: finished epochs of the evaluated weights.
        scales: sizes of the shorter side in pixels.
        views: how many times the network sees each image.
        metrics: by tag, such as test/accuracy.
        data: fingerprint of the data, {file name: SHA-256}.
        paused_at: the epoch of a paused run; None for a finished run and a chosen checkpoint.
    """

    run: str
    checkpoint: int
    epoch: int
    scales: list[int]
    views: int
    metrics: dict[str, float]
    weights_sha256: str
    device: str
    precision: str
    data: dict[str, str]
    paused_at: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON object: the metrics stand beside the other keys."""
        return {
            "run": self.run,
            "checkpoint": self.checkpoint,
            "epoch": self.epoch,
            "scales": self.scales,
            "views": self.views,
            **self.metrics,
            "weights_sha256": self.weights_sha256,
            "device": self.device,
            "precision": self.precision,
            "data": self.data,
            "paused_at": self.paused_at,
        }


class RunPredictions(NamedTuple):
    """Predictions of one run for the images of the split."""

    scores: RunScores
    classes: tuple[str, ...]
    probs: Tensor  # float64 [N, K]
    labels: Tensor  # int64 [N]


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of one run, or of several runs with their softmax averaged.

    Args:
        scales: sizes of the shorter side in pixels, of the first run.
        views: how many times the network sees each image.
        split: test or val.
        images: number of images.
        metrics: of the averaged softmax, by tag, such as test/accuracy.
        class_accuracy: None for a class without images.
        confusions: images by true and predicted class.
        runs: scores of each run alone; the first run is the one that the result is written to.
        file: the JSON file.
    """

    mode: str
    scales: list[int]
    image_views: ImageViews
    views: int
    split: str
    images: int
    metrics: dict[str, float]
    classes: list[str]
    class_accuracy: list[float | None]
    confusions: Confusions
    runs: list[RunScores]
    seconds: float
    file: Path

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of the JSON file: the metrics stand beside the other keys.

        `confusion` is null for too many classes; `confusion_pairs` has the cells that are not 0.
        """
        confusion = None
        if len(self.classes) <= MAX_MATRIX_CLASSES:
            confusion = self.confusions.matrix().tolist()
        return {
            "run": self.runs[0].run,
            "with": [scores.run for scores in self.runs[1:]],
            "mode": self.mode,
            "scales": self.scales,
            "flip": self.image_views.flip,
            "shift": self.image_views.shift,
            "views": self.views,
            "split": self.split,
            "checkpoint": self.runs[0].checkpoint,
            "images": self.images,
            **self.metrics,
            "classes": self.classes,
            "class_accuracy": self.class_accuracy,
            "confusion": confusion,
            "confusion_pairs": [list(pair) for pair in self.confusions.pairs()],
            "runs": [scores.to_dict() for scores in self.runs],
            "seconds": self.seconds,
        }


def evaluate_runs(folders: Sequence[Path], options: EvalOptions) -> EvaluationResult:
    """Evaluates all runs together. Writes to the first one. Raises every VggexpError."""
    console = Console(None, sys.stderr)
    start = monotonic()
    if not os.access(folders[0], os.W_OK):
        raise ResourceError(f"{folders[0]}: not writable, and the result is written there")
    predictions = [_evaluate_run(folder, options, console) for folder in folders]
    result = _combine(folders[0], predictions, options, start)
    _save(folders[0], result, console)
    return result


def _evaluate_run(folder: Path, options: EvalOptions, console: Console) -> RunPredictions:
    """Evaluates a run with the device and number format of its training."""
    config, checkpoint = load_tested_checkpoint(folder, options.checkpoint)
    config = locate_data(_eval_config(config, checkpoint, console), folder, options.data)
    device_setup = setup_device(config, checkpoint["threads"])
    with memory.oom_as_resource_error(f"in evaluating {folder}; smaller --scales need less"):
        data = load_test_data(config, folder, checkpoint, device_setup.device, console.line)
        weights = select_eval_weights(checkpoint)
        loader = data.val if options.split == "val" else data.test
        assert loader is not None  # the command has checked data.val_fraction
        predictor = MultiViewPredictor(
            model=build.build_tested_model(config, device_setup, weights, folder),
            preprocess=loader.preprocess,
            autocast=device_setup.autocast,
            batch_size=config.data.batch_size,
            image_views=options.image_views,
        )
        scales = options.scales or (data.preprocess.size,)
        batches = console.track(
            f"{options.split} of {folder.name}",
            loader.full_images(scales),
            loader.batches_per_epoch,
        )
        probs, labels = predictor.predict(batches, options.mode)
    if not probs.isfinite().all():
        raise DivergedError(
            f"{folder}: at {_join(scales)} px not all probabilities are finite "
            f"in {device_setup.precision}"
        )
    recorded = read_result(folder)
    is_paused = recorded.get("state") == "paused" and options.checkpoint is None
    position = checkpoint
    if "step" not in checkpoint:  # of train.keep=weights
        position = {"step": recorded["weights_step"], "epoch": _tested_epoch(recorded)}
    scores = RunScores(
        run=str(folder),
        checkpoint=position["step"],
        epoch=position["epoch"],
        scales=list(scales),
        views=count_views(options.mode, len(scales), options.image_views),
        metrics=classification_metrics(probs, labels, options.split),
        weights_sha256=weights_sha256(weights),
        device=str(device_setup.device),
        precision=device_setup.precision,
        data=data.fingerprint,
        paused_at=recorded.get("epoch") if is_paused else None,
    )
    return RunPredictions(scores, data.classes, probs, labels)


def _tested_epoch(result: Mapping[str, Any]) -> int:
    """Returns the epoch of the tested weights, from result.json of a finished run."""
    epoch: int = result["epoch"]
    if result.get("test_weights") == "best":
        return result.get("best/epoch", epoch)
    return epoch


def _eval_config(config: Config, checkpoint: dict[str, Any], console: Console) -> Config:
    """Returns the configuration that evaluates the run on this machine."""
    device = config.device
    if not is_available(device.name):
        console.line(f"warning: no {device.name} device here: evaluated on the processor")
        device = replace(device, name="cpu", compile=False)
    device = replace(device, precision=checkpoint["precision"])
    return replace(test_only_config(config), device=device)


def _combine(
    folder: Path, predictions: Sequence[RunPredictions], options: EvalOptions, start: float
) -> EvaluationResult:
    """Averages the probabilities of the runs.

    Raises:
        CheckpointError: the runs have different images or classes.
    """
    first = predictions[0]
    for other in predictions[1:]:
        if other.classes != first.classes or not torch.equal(other.labels, first.labels):
            raise CheckpointError(
                f"{other.scores.run} and {first.scores.run}: "
                "not tested on the same classes and images"
            )
    probs = first.probs
    if len(predictions) > 1:
        probs = torch.stack([prediction.probs for prediction in predictions]).mean(0)
    predicted = probs.argmax(1)
    confusions = count_confusions(first.labels.numpy(), predicted.numpy(), len(first.classes))
    runs = [prediction.scores for prediction in predictions]
    return EvaluationResult(
        mode=options.mode,
        scales=first.scores.scales,
        image_views=options.image_views,
        views=first.scores.views,
        split=options.split,
        images=len(first.labels),
        metrics=classification_metrics(probs, first.labels, options.split),
        classes=list(first.classes),
        class_accuracy=_class_accuracy(confusions),
        confusions=confusions,
        runs=runs,
        seconds=monotonic() - start,
        file=folder / FOLDER / f"{_file_name(options, runs)}.json",
    )


def _class_accuracy(confusions: Confusions) -> list[float | None]:
    counts = zip(confusions.correct().tolist(), confusions.images().tolist(), strict=True)
    accuracies: list[float | None] = []
    for correct, images in counts:
        accuracies.append(correct / images if images else None)
    return accuracies


def _file_name(options: EvalOptions, runs: Sequence[RunScores]) -> str:
    """Returns dense-88-96-104-flip-shift1-with2-1a2b3c4d: the same evaluation has the same name.

    Validation images have val before it, and a checkpoint has step400 behind it.
    """
    parts = [options.mode, *map(str, runs[0].scales)]
    if options.split != "test":
        parts.insert(0, options.split)
    if options.image_views.flip:
        parts.append("flip")
    if options.image_views.shift:
        parts.append(f"shift{options.image_views.shift}")
    if runs[0].paused_at is not None:
        parts.append(f"epoch{runs[0].paused_at}")
    others = [[scores.weights_sha256, scores.scales] for scores in runs[1:]]
    if others:
        digest = hashlib.sha256(repr(sorted(others, key=repr)).encode()).hexdigest()
        parts += [f"with{len(others)}", digest[:8]]
    if options.checkpoint is not None:
        parts.append(f"step{options.checkpoint}")
    return "-".join(parts)


def _save(folder: Path, result: EvaluationResult, console: Console) -> None:
    """Writes the JSON file, and beside it the events that TensorBoard shows."""
    path = result.file
    with os_error_as_resource_error(path, "written"):
        make_inner_dir(path.parent)
        write_json(path, result.to_dict())
    try:
        _write_events(path.with_suffix(""), result)
    except Exception as error:  # the JSON file is complete without TensorBoard's view of it
        console.line(f"warning: TensorBoard: {error}")


def _write_events(folder: Path, result: EvaluationResult) -> None:
    from vggexp.loggers.images import confusion_image
    from vggexp.loggers.tensorboard import write_evaluation

    image = confusion_image(result.confusions, result.classes)
    text = "\n".join([format_heading(result), "", *_score_table(result)])
    write_evaluation(folder, result.metrics, result.runs[0].epoch, text, image, result.split)


def format_report(result: EvaluationResult) -> str:
    """Returns text for a terminal: the scores, and the confusions of each class."""
    return "\n".join(
        [
            format_heading(result),
            "",
            *_score_table(result),
            "",
            *_class_table(result),
            "",
            f"written to {printable(str(result.file))}",
        ]
    )


def format_heading(result: EvaluationResult) -> str:
    times = "once" if result.views == 1 else f"{result.views} times"
    first = result.runs[0]
    steps = " and ".join(dict.fromkeys(str(scores.checkpoint) for scores in result.runs))
    paused = "" if first.paused_at is None else f", paused after epoch {first.paused_at}"
    return (
        f"{result.mode} at {_join(result.scales)} px{result.image_views.suffix}: "
        f"{result.images:,} {SPLIT_NAMES[result.split]} images seen {times}, "
        f"weights of step {steps}, {first.device} {first.precision}{paused}"
    )


def _join(scales: Sequence[int]) -> str:
    return ", ".join(map(str, scales))


def _score_table(result: EvaluationResult) -> list[str]:
    rows = [[scores.run, *_metric_cells(scores.metrics)] for scores in result.runs]
    if len(result.runs) > 1:
        rows.append(["mean of their softmax", *_metric_cells(result.metrics)])
    return markdown_table(["run", *METRIC_NAMES.values()], rows)


def _metric_cells(metrics: Mapping[str, float]) -> list[str]:
    by_name = {tag.partition("/")[2]: value for tag, value in metrics.items()}
    return [format_metric(by_name[name]) for name in METRIC_NAMES]


def _class_table(result: EvaluationResult) -> list[str]:
    """Returns a row for each class with its confusions, or the least accurate of many classes."""
    count = len(result.classes)
    labels = list(range(count))
    columns = ["class", "images", "accuracy"]
    images = result.confusions.images()
    if count <= MAX_CLASSES_SHOWN:
        columns += map(str, labels)
        matrix = result.confusions.matrix()
        rows = [_class_cells(result, label, images) for label in labels]
        for row, counts in zip(rows, matrix.tolist(), strict=True):
            row += map(str, counts)
        note = "columns by number: how often it was taken for that class"
        return [*markdown_table(columns, rows), note]
    tested = [label for label in labels if images[label]]
    tested.sort(key=lambda label: result.class_accuracy[label] or 0)
    rows = [_class_cells(result, label, images) for label in tested[:MAX_CLASSES_SHOWN]]
    pairs = []
    for pair in result.confusions.most_confused(MAX_CLASSES_SHOWN):
        names = [_class_name(result, index) for index in (pair.label, pair.predicted)]
        pairs.append([*names, f"{pair.images:,}"])
    return [
        *markdown_table(columns, rows),
        f"of {count} classes, the worst",
        "",
        *markdown_table(["class", "taken for", "images"], pairs),
        "the most frequent mistakes",
    ]


def _class_cells(result: EvaluationResult, label: int, images: NDArray[Any]) -> list[str]:
    accuracy = result.class_accuracy[label]
    return [
        _class_name(result, label),
        f"{images[label]:,}",
        "-" if accuracy is None else f"{accuracy:.4f}",
    ]


def _class_name(result: EvaluationResult, label: int) -> str:
    name = shorten(result.classes[label], MAX_NAME_CHARS)
    return name if name == str(label) else f"{label} {name}"
