"""Whether an exported file answers as its run did, over the whole test set; for vggexp.export."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vggexp.data.transforms import resize_center_crop
from vggexp.errors import CheckpointError, DataError
from vggexp.export.exported_model import ExportedModel, from_run
from vggexp.loggers.console import Console
from vggexp.runner import datasets
from vggexp.runner.load import LoadedRun, test_only_config
from vggexp.runs.predictions import Predictions

BATCH = 128  # pictures
EXACT = 1e-4  # of a probability: what two orders of adding in fp32 explain
# What the format of the run's own test explains. Measured with two VGG-11 on Fashion-MNIST: 0.0095 and 0.016 in bf16.
ROUNDING = {"fp32": EXACT, "tf32": 0.02, "fp16": 0.02, "bf16": 0.1}
RESIZED = (
    0.05  # a GPU resizes to fractions, the processor and the file to whole numbers: there 0.0077
)


@torch.inference_mode()
def parity(
    model: ExportedModel,
    run: LoadedRun,
    folder: Path,
    saved: dict[str, Any],
    kept: Predictions,
    console: Console,
) -> dict[str, Any]:
    """The largest differences of a probability, and how many labels agree: from predictions.npz over the test set, and
    from the network here over its first batch. Raises CheckpointError where rounding does not explain them."""
    data = _test_set(folder, run, saved, kept)
    scores = _scores(model, data, console)
    wanted = torch.from_numpy(kept.scores)
    first = data.pictures(torch.arange(min(BATCH, len(scores))))
    here = from_run(run).logits(first).softmax(1)
    found = {
        "images": len(scores),
        "max_difference": _largest(scores - wanted),
        "same_labels": int((scores.argmax(1) == wanted.argmax(1)).sum()),
        "max_difference_here": _largest(scores[: len(here)] - here),
        "tolerance": ROUNDING[saved["precision"]] + RESIZED * (saved["device"] != "cpu"),
        "precision": saved["precision"],
        "device": saved["device"],
    }
    if not (
        found["max_difference"] <= found["tolerance"] and found["max_difference_here"] <= EXACT
    ):
        raise CheckpointError(
            f"{folder}: the file does not answer as the run did, and was removed: {format_parity(found)}"
        )
    return found


def format_parity(found: dict[str, Any]) -> str:
    """`360 test images: largest difference 2.1e-07 from predictions.npz (cpu fp32 explains 0.0001), ...`."""
    return (
        f"{found['images']:,} test images: maximum difference {found['max_difference']:.2g} from predictions.npz "
        f"({found['device']} {found['precision']} explains {found['tolerance']:g}), "
        f"{found['max_difference_here']:.2g} from the network here; "
        f"same label for {found['same_labels']:,} ({found['same_labels'] / found['images']:.4f})"
    )


def _test_set(
    folder: Path, run: LoadedRun, saved: dict[str, Any], kept: Predictions
) -> datasets.DataLoaders:
    """Raises DataError, and CheckpointError where it is not what the run was tested on."""
    try:
        data = datasets.build_loaders(test_only_config(run.config), torch.device("cpu"))
    except DataError as error:
        raise DataError(f"{error} (--unchecked exports without it)") from error
    if changed := data.changed(saved["data"]):
        raise CheckpointError(
            f"{folder}: the data has changed since this run began ({changed}); bring it back"
        )
    if data.test.labels.tolist() != kept.labels.tolist() or kept.scores.shape[1] != len(
        run.classes
    ):
        raise CheckpointError(f"{folder}: predictions.npz is not of this test set")
    return data


def _scores(model: ExportedModel, data: datasets.DataLoaders, console: Console) -> Tensor:
    """The file's probabilities [N, classes] of all test images."""
    parts = torch.arange(data.test.count).split(BATCH)
    scores = []
    with console.progress("comparing", len(parts)) as progress:
        for places in parts:
            scores.append(
                model.logits(resize_center_crop(data.pictures(places), model.side)).softmax(1)
            )
            progress.update(len(places))
    return torch.cat(scores)


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())
