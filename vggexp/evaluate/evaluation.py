"""Finished runs evaluated as the paper does it, alone or with their soft-max averaged; for vggexp.evaluate."""

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vggexp.config.schema import Config
from vggexp.errors import CheckpointError, DivergedError, ResourceError
from vggexp.evaluate.views import MultiViewPredictor, views
from vggexp.formatting import markdown_table, printable, shorten
from vggexp.loggers.console import Console
from vggexp.runner import build, datasets, hardware
from vggexp.runner.hardware import setup_device
from vggexp.runner.load import load_tested_checkpoint, test_only_config
from vggexp.runs.directory import read_result
from vggexp.runs.jsonl import write_json
from vggexp.system import memory
from vggexp.training import checkpoint
from vggexp.training.metrics import classification_metrics, confusion_matrix

FOLDER = "evaluations"  # in the run directory
MATRIX = 20  # classes whose confusion matrix fits a terminal; of more, so many of the least accuracy are told
MAX_NAME_CHARS = 30  # characters of a class's name
SCORES = {
    "test/accuracy": "accuracy",
    "test/top5_accuracy": "top 5",
    "test/loss": "loss",
    "test/calibration_error": "calibration error",
}

EvalResult = dict[str, Any]


class EvalOptions(NamedTuple):
    """How the pictures are seen. scales: of the shorter side in pixels; None: each run's training size."""

    mode: str
    scales: tuple[int, ...] | None
    flip: bool


class RunPredictions(NamedTuple):
    """What one run says of the test set."""

    facts: EvalResult
    classes: tuple[str, ...]
    scores: Tensor  # float64 [N, K], probabilities
    labels: Tensor  # int64 [N]


def evaluate_runs(folders: Sequence[Path], asked: EvalOptions) -> EvalResult:
    """The scores of all runs together, written beside the first one. Raises every VggexpError."""
    console = Console(None, sys.stderr)
    begun = monotonic()
    if not os.access(folders[0], os.W_OK):
        raise ResourceError(f"{folders[0]}: cannot be written, and the result belongs there")
    seen = [_evaluate_run(folder, asked, console) for folder in folders]
    result = _fuse(seen, asked) | {"seconds": monotonic() - begun}
    return result | {"file": str(_save(folders[0], result, console))}


def _save(folder: Path, result: EvalResult, console: Console) -> Path:
    """Beside the run: the result, and TensorBoard's view of it."""
    path = folder / FOLDER / f"{_name(result['mode'], result['flip'], result['runs'])}.json"
    try:
        path.parent.mkdir(exist_ok=True)
        write_json(path, result)
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        _to_tensorboard(path.with_suffix(""), result, read_result(folder)["epoch"])
    except Exception as error:  # a view costs nothing else
        console.line(f"warning: TensorBoard: {error}")
    return path


def _evaluate_run(folder: Path, asked: EvalOptions, console: Console) -> RunPredictions:
    """The run's network over its test set, on the device and in the number format it was trained with."""
    config, saved = load_tested_checkpoint(folder)
    config = _eval_config(config, saved, console)
    hardware = setup_device(config, saved["threads"])
    with memory.oom_as_resource_error(f"in evaluating {folder}; smaller --scales need less"):
        data = datasets.build_loaders(config, hardware.device, console.line)
        if changed := data.changed(saved["data"]):
            raise CheckpointError(
                f"{folder}: the data has changed since this run began ({changed}); bring it back"
            )
        model = build.build_tested_model(config, hardware, checkpoint.weights_of(saved))
        sides = asked.scales or (data.preprocess.size,)
        viewer = MultiViewPredictor(
            model, data.test.preprocess, hardware.autocast, config.data.batch_size, asked.flip
        )
        batches = console.counted(
            f"test of {folder.name}", data.test.full_images(sides), data.test.batches_per_epoch
        )
        scores, labels = viewer.probabilities(batches, asked.mode)
    if not scores.isfinite().all():
        raise DivergedError(
            f"{folder}: at {_listed(sides)} px not all scores are finite in {hardware.precision}"
        )
    facts = {
        "run": str(folder),
        "scales": list(sides),
        "views": views(asked.mode, len(sides), asked.flip),
        **classification_metrics(scores, labels, "test"),
        "weights_sha256": read_result(folder).get("weights_sha256"),
        "device": str(hardware.device),
        "precision": hardware.precision,
        "data": data.fingerprint,
    }
    return RunPredictions(facts, data.classes, scores, labels)


def _eval_config(config: Config, saved: dict[str, Any], console: Console) -> Config:
    """The run on this machine."""
    config, device = test_only_config(config), config.device
    if not hardware.is_available(device.name):
        console.line(f"warning: no {device.name} device here: evaluated on the processor")
        device = replace(device, name="cpu", compile=False)
    return replace(config, device=replace(device, precision=saved["precision"]))


def _fuse(seen: Sequence[RunPredictions], asked: EvalOptions) -> EvalResult:
    """The mean of the runs' probabilities. Raises CheckpointError where they are not of the same images."""
    first, *others = seen
    for other in others:
        if other.classes != first.classes or not torch.equal(other.labels, first.labels):
            runs = f"{other.facts['run']} and {first.facts['run']}"
            raise CheckpointError(f"{runs}: not tested on the same classes and images")
    scores = torch.stack([one.scores for one in seen]).mean(0) if others else first.scores
    counts = confusion_matrix(first.labels, scores.argmax(1), len(first.classes))
    shares = counts.diagonal().double() / counts.sum(1)
    return {
        "run": first.facts["run"],
        "with": [other.facts["run"] for other in others],
        **asked._asdict(),
        "scales": first.facts["scales"],
        "views": first.facts["views"],
        "images": len(first.labels),
        **classification_metrics(scores, first.labels, "test"),
        "classes": list(first.classes),
        "class_accuracy": [
            None if share != share else share for share in shares.tolist()
        ],  # no images: NaN
        "confusion": counts.tolist(),
        "runs": [one.facts for one in seen],
    }


def _name(mode: str, flip: bool, runs: Sequence[EvalResult]) -> str:
    """dense-88-96-104-flip-with2-1a2b3c4d: the same evaluation is the same name."""
    others = [[run["weights_sha256"], run["scales"]] for run in runs[1:]]
    digest = hashlib.sha256(repr(sorted(others, key=repr)).encode()).hexdigest()[:8]
    fused = [f"with{len(others)}", digest] if others else []
    return "-".join([mode, *map(str, runs[0]["scales"]), *(["flip"] if flip else []), *fused])


def _to_tensorboard(folder: Path, result: EvalResult, epoch: int) -> None:
    from vggexp.loggers.images import confusion_image
    from vggexp.loggers.tensorboard import write_evaluation

    counts = torch.tensor(result["confusion"]).numpy()
    text = "\n".join([heading(result), "", *_scores(result)])
    write_evaluation(
        folder,
        {tag: result[tag] for tag in SCORES},
        epoch,
        text,
        confusion_image(counts, result["classes"]),
    )


def format_report(result: EvalResult) -> str:
    """For a terminal: the scores, and of each class how often it is taken for which."""
    return "\n".join(
        [
            heading(result),
            "",
            *_scores(result),
            "",
            *_classes(result),
            "",
            f"written to {result['file']}",
        ]
    )


def heading(result: EvalResult) -> str:
    run = result["runs"][0]
    flip = ", each mirrored too" if result["flip"] else ""
    times = "once" if result["views"] == 1 else f"{result['views']} times"
    seen = f"{result['mode']} at {_listed(result['scales'])} px{flip}: {result['images']:,} images seen {times}"
    return f"{seen}, {run['device']} {run['precision']}"


def _listed(scales: Sequence[int]) -> str:
    return ", ".join(map(str, scales))


def _scores(result: EvalResult) -> list[str]:
    rows = [[printable(run["run"]), *_numbers(run)] for run in result["runs"]]
    if result["with"]:
        rows.append(["mean of their soft-max", *_numbers(result)])
    return markdown_table(["run", *SCORES.values()], rows)


def _numbers(scores: Mapping[str, Any]) -> list[str]:
    return [f"{scores[key]:.4f}" for key in SCORES]


def _classes(result: EvalResult) -> list[str]:
    """A row for each class, with the matrix where it fits; of many classes, those of the least accuracy."""
    counts = result["confusion"]
    names = result["classes"]
    shares = result["class_accuracy"]
    few = len(names) <= MATRIX
    chosen = (
        range(len(names))
        if few
        else sorted(range(len(names)), key=lambda label: shares[label] or 0)[:MATRIX]
    )
    columns = ["class", "images", "accuracy", *(map(str, range(len(names))) if few else [])]
    rows = [
        [
            shorten(names[label], MAX_NAME_CHARS)
            if names[label] == str(label)
            else f"{label} {shorten(names[label], MAX_NAME_CHARS)}",
            f"{sum(counts[label]):,}",
            "-" if shares[label] is None else f"{shares[label]:.4f}",
            *(map(str, counts[label]) if few else []),
        ]
        for label in chosen
    ]
    more = (
        "columns by number: how often it was taken for that class"
        if few
        else f"of {len(names)} classes, the worst"
    )
    return [*markdown_table(columns, rows), more]
