"""Checks that an exported file predicts what its run predicted, over the whole test set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vggexp.config.derived import tested_views
from vggexp.data.image_views import ImageViews
from vggexp.data.transforms import resize_center_crop
from vggexp.errors import CheckpointError, DataError
from vggexp.export.exported_model import ExportedModel, from_run
from vggexp.loggers.console import Console
from vggexp.runner import datasets
from vggexp.runner.load import LoadedRun, load_test_data, test_only_config
from vggexp.runs.predictions import Predictions
from vggexp.training.metrics import log_mean_softmax

BATCH_SIZE = 128  # images

# The tolerances are differences of a probability.
FP32_TOLERANCE = 1e-4  # explained by two orders of addition in fp32
# Explained by the number format of the run's own test evaluation.
# Measured with two VGG-11 on Fashion-MNIST: 0.0095 and 0.016 in bf16.
PRECISION_TOLERANCE = {"fp32": FP32_TOLERANCE, "tf32": 0.02, "fp16": 0.02, "bf16": 0.1}
# A GPU resizes to fractions of a pixel value. The CPU and the exported file round to whole numbers.
GPU_RESIZE_TOLERANCE = 0.05  # measured: 0.0077


@dataclass(frozen=True)
class ParityResult:
    """Comparison of an exported file with its run.

    Args:
        images: number of test images.
        max_difference: largest difference of a probability from predictions.npz.
        same_labels: number of images with the same predicted class as in predictions.npz.
        max_difference_here: largest difference of a probability from the network on this machine,
            in fp32, over the first batch.
        tolerance: the largest `max_difference` that rounding explains.
        precision: number format of the run's test evaluation.
        device: device of the run's test evaluation.
        flip: whether all probabilities are means over an image and its mirror image.
        shift: pixels by which the image is also moved for these means; 0: not moved.
    """

    images: int
    max_difference: float
    same_labels: int
    max_difference_here: float
    tolerance: float
    precision: str
    device: str
    flip: bool
    shift: int

    @property
    def passed(self) -> bool:
        # A difference of NaN fails both comparisons.
        same_as_run = self.max_difference <= self.tolerance
        same_as_network = self.max_difference_here <= FP32_TOLERANCE
        return same_as_run and same_as_network


@torch.inference_mode()
def check_parity(
    model: ExportedModel,
    run: LoadedRun,
    folder: Path,
    checkpoint: dict[str, Any],
    expected: Predictions,
    console: Console,
) -> ParityResult:
    """Compares the exported model with the run that it was made from.

    If the run was tested with mirror images or shifts, the model predicts them too.

    Args:
        model: the exported file, loaded back.
        folder: the run directory, for messages.
        checkpoint: the checkpoint that the run was tested with.
        expected: predictions.npz of the run.

    Raises:
        CheckpointError: the difference is larger than rounding explains, or the data has changed.
        DataError: the test set is missing or damaged.
    """
    data = _load_test_set(folder, run, checkpoint, expected)
    views = tested_views(run.config)
    probs = _predict_test_set(model, data, views, console)
    expected_probs = torch.from_numpy(expected.probs)
    same_labels = probs.argmax(1) == expected_probs.argmax(1)
    first_indices = torch.arange(min(BATCH_SIZE, len(probs)))
    first_images = resize_center_crop(data.test_images(first_indices), model.image_size)
    network_probs = _predict(from_run(run), first_images, views)
    tolerance = PRECISION_TOLERANCE[checkpoint["precision"]]
    if checkpoint["device"] != "cpu":
        tolerance += GPU_RESIZE_TOLERANCE
    result = ParityResult(
        images=len(probs),
        max_difference=_max_difference(probs, expected_probs),
        same_labels=int(same_labels.sum()),
        max_difference_here=_max_difference(probs[: len(network_probs)], network_probs),
        tolerance=tolerance,
        precision=checkpoint["precision"],
        device=checkpoint["device"],
        flip=views.flip,
        shift=views.shift,
    )
    if not result.passed:
        raise CheckpointError(
            f"{folder}: the exported file does not predict what the run predicted, "
            f"so it was removed: {format_parity(result)}"
        )
    return result


def format_parity(result: ParityResult) -> str:
    """Returns `360 test images: maximum difference 2.1e-07 from predictions.npz (cpu fp32 ...`."""
    share = result.same_labels / result.images
    views = ImageViews(result.flip, result.shift)
    return (
        f"{result.images:,} test images{views.suffix}: "
        f"maximum difference {result.max_difference:.2g} from predictions.npz "
        f"({result.device} {result.precision} explains {result.tolerance:g}), "
        f"{result.max_difference_here:.2g} from the network here; "
        f"same label for {result.same_labels:,} ({share:.4f})"
    )


def _load_test_set(
    folder: Path, run: LoadedRun, checkpoint: dict[str, Any], expected: Predictions
) -> datasets.DataLoaders:
    """Raises DataError, or CheckpointError if the run was tested on other data."""
    try:
        config = test_only_config(run.config)
        data = load_test_data(config, folder, checkpoint, torch.device("cpu"))
    except DataError as error:
        raise DataError(f"{error} (--unchecked exports without it)") from error
    same_labels = data.test.labels.tolist() == expected.labels.tolist()
    class_count = expected.probs.shape[1]
    if not same_labels or class_count != len(run.classes):
        raise CheckpointError(f"{folder}: predictions.npz is of another test set")
    return data


def _predict_test_set(
    model: ExportedModel, data: datasets.DataLoaders, views: ImageViews, console: Console
) -> Tensor:
    """Returns the file's probabilities [N, classes] of all test images."""
    batches = torch.arange(data.test.count).split(BATCH_SIZE)
    probs = []
    with console.progress("comparing", len(batches)) as progress:
        for indices in batches:
            images = resize_center_crop(data.test_images(indices), model.image_size)
            probs.append(_predict(model, images, views))
            progress.update(len(indices))
    return torch.cat(probs)


def _predict(model: ExportedModel, images: Tensor, views: ImageViews) -> Tensor:
    """Returns probabilities [N, classes], means over the views of each image."""
    logits = [model.logits(view) for view in views.make(images)]
    return log_mean_softmax(logits).softmax(1)


def _max_difference(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())
