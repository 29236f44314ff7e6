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

from vggexp import build, checkpoint, memory
from vggexp.config.schema import Config
from vggexp.errors import CheckpointError, DivergedError, ResourceError
from vggexp.metrics import confusion, quality
from vggexp.notebook import tested, without_training
from vggexp.rundir import result_of
from vggexp.sinks.console import Console, clipped, printable
from vggexp.sinks.jsonl import write_json
from vggexp.tabular import markdown
from vggexp.views import Viewer, views

FOLDER = "evaluations"  # in the run directory
MATRIX = 20  # classes whose confusion matrix fits a terminal; of more, so many of the least accuracy are told
LONGEST = 30  # characters of a class's name
SCORES = {
    "test/accuracy": "accuracy", "test/top5_accuracy": "top 5", "test/loss": "loss",
    "test/calibration_error": "calibration error",
}  # fmt: skip

Result = dict[str, Any]


class Asked(NamedTuple):
    """How the pictures are seen. scales: of the shorter side in pixels; None: each run's training size."""

    mode: str
    scales: tuple[int, ...] | None
    flip: bool


class Seen(NamedTuple):
    """What one run says of the test set."""

    facts: Result
    classes: tuple[str, ...]
    scores: Tensor  # float64 [N, K], probabilities
    labels: Tensor  # int64 [N]


def evaluated(folders: Sequence[Path], asked: Asked) -> Result:
    """The scores of all runs together, written beside the first one. Raises every VggexpError."""
    console, begun = Console(None, sys.stderr), monotonic()
    if not os.access(folders[0], os.W_OK):
        raise ResourceError(f"{folders[0]}: cannot be written, and the result belongs there")
    seen = [_looked(folder, asked, console) for folder in folders]
    result = _together(seen, asked) | {"seconds": monotonic() - begun}
    return result | {"file": str(_recorded(folders[0], result, console))}


def _recorded(folder: Path, result: Result, console: Console) -> Path:
    """Beside the run: the result, and TensorBoard's view of it."""
    path = folder / FOLDER / f"{_name(result['mode'], result['flip'], result['runs'])}.json"
    try:
        path.parent.mkdir(exist_ok=True)
        write_json(path, result)
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        _to_tensorboard(path.with_suffix(""), result, result_of(folder)["epoch"])
    except Exception as error:  # a view costs nothing else
        console.line(f"warning: TensorBoard: {error}")
    return path


def _looked(folder: Path, asked: Asked, console: Console) -> Seen:
    """The run's network over its test set, on the device and in the number format it was trained with."""
    config, saved = tested(folder)
    config = _for_the_test(config, saved, console)
    hardware = build.hardware(config, saved["threads"])
    with memory.told(f"in evaluating {folder}; smaller --scales need less"):
        data = build.data(config, hardware.device, console.line)
        if changed := data.changed(saved["data"]):
            raise CheckpointError(f"{folder}: the data has changed since this run began ({changed}); bring it back")
        net = build.trained(config, hardware, checkpoint.weights_of(saved))
        sides = asked.scales or (data.preprocess.size,)
        viewer = Viewer(net, data.test.preprocess, hardware.autocast, config.data.batch_size, asked.flip)
        batches = console.counted(f"test of {folder.name}", data.test.whole(sides), data.test.batches_per_epoch)
        scores, labels = viewer.probabilities(batches, asked.mode)
    if not scores.isfinite().all():
        raise DivergedError(f"{folder}: at {_listed(sides)} px not all scores are finite in {hardware.precision}")
    facts = {
        "run": str(folder), "scales": list(sides), "views": views(asked.mode, len(sides), asked.flip),
        **quality(scores, labels, "test"), "weights_sha256": result_of(folder).get("weights_sha256"),
        "device": str(hardware.device), "precision": hardware.precision,
        "data": data.fingerprint,
    }  # fmt: skip
    return Seen(facts, data.classes, scores, labels)


def _for_the_test(config: Config, saved: dict[str, Any], console: Console) -> Config:
    """The run on this machine."""
    config, device = without_training(config), config.device
    if not build.present(device.name):
        console.line(f"warning: no {device.name} device here: evaluated on the processor")
        device = replace(device, name="cpu", compile=False)
    return replace(config, device=replace(device, precision=saved["precision"]))


def _together(seen: Sequence[Seen], asked: Asked) -> Result:
    """The mean of the runs' probabilities. Raises CheckpointError where they are not of the same images."""
    first, *others = seen
    for other in others:
        if other.classes != first.classes or not torch.equal(other.labels, first.labels):
            runs = f"{other.facts['run']} and {first.facts['run']}"
            raise CheckpointError(f"{runs}: not tested on the same classes and images")
    scores = torch.stack([one.scores for one in seen]).mean(0) if others else first.scores
    counts = confusion(first.labels, scores.argmax(1), len(first.classes))
    shares = counts.diagonal().double() / counts.sum(1)
    return {
        "run": first.facts["run"],
        "with": [other.facts["run"] for other in others],
        **asked._asdict(),
        "scales": first.facts["scales"],
        "views": first.facts["views"],
        "images": len(first.labels),
        **quality(scores, first.labels, "test"),
        "classes": list(first.classes),
        "class_accuracy": [None if share != share else share for share in shares.tolist()],  # no images: NaN
        "confusion": counts.tolist(),
        "runs": [one.facts for one in seen],
    }


def _name(mode: str, flip: bool, runs: Sequence[Result]) -> str:
    """dense-88-96-104-flip-with2-1a2b3c4d: the same evaluation is the same name."""
    others = [[run["weights_sha256"], run["scales"]] for run in runs[1:]]
    digest = hashlib.sha256(repr(sorted(others, key=repr)).encode()).hexdigest()[:8]
    fused = [f"with{len(others)}", digest] if others else []
    return "-".join([mode, *map(str, runs[0]["scales"]), *(["flip"] if flip else []), *fused])


def _to_tensorboard(folder: Path, result: Result, epoch: int) -> None:
    from vggexp.sinks.evaluations import write_evaluation
    from vggexp.sinks.pictures import confusion_picture

    counts = torch.tensor(result["confusion"]).numpy()
    text = "\n".join([heading(result), "", *_scores(result)])
    write_evaluation(
        folder, {tag: result[tag] for tag in SCORES}, epoch, text, confusion_picture(counts, result["classes"])
    )


def told(result: Result) -> str:
    """For a terminal: the scores, and of each class how often it is taken for which."""
    return "\n".join([heading(result), "", *_scores(result), "", *_classes(result), "", f"written to {result['file']}"])


def heading(result: Result) -> str:
    run, flip = result["runs"][0], ", each mirrored too" if result["flip"] else ""
    times = "once" if result["views"] == 1 else f"{result['views']} times"
    seen = f"{result['mode']} at {_listed(result['scales'])} px{flip}: {result['images']:,} images seen {times}"
    return f"{seen}, {run['device']} {run['precision']}"


def _listed(scales: Sequence[int]) -> str:
    return ", ".join(map(str, scales))


def _scores(result: Result) -> list[str]:
    rows = [[printable(run["run"]), *_numbers(run)] for run in result["runs"]]
    if result["with"]:
        rows.append(["mean of their soft-max", *_numbers(result)])
    return markdown(["run", *SCORES.values()], rows)


def _numbers(scores: Mapping[str, Any]) -> list[str]:
    return [f"{scores[key]:.4f}" for key in SCORES]


def _classes(result: Result) -> list[str]:
    """A row for each class, with the matrix where it fits; of many classes, those of the least accuracy."""
    counts, names, shares = result["confusion"], result["classes"], result["class_accuracy"]
    few = len(names) <= MATRIX
    chosen = range(len(names)) if few else sorted(range(len(names)), key=lambda label: shares[label] or 0)[:MATRIX]
    columns = ["class", "images", "accuracy", *(map(str, range(len(names))) if few else [])]
    rows = [
        [
            clipped(names[label], LONGEST)
            if names[label] == str(label)
            else f"{label} {clipped(names[label], LONGEST)}",
            f"{sum(counts[label]):,}",
            "-" if shares[label] is None else f"{shares[label]:.4f}",
            *(map(str, counts[label]) if few else []),
        ]
        for label in chosen
    ]
    more = "columns by number: how often it was taken for that class" if few else f"of {len(names)} classes, the worst"
    return [*markdown(columns, rows), more]
