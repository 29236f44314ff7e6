"""Writes what TensorBoard shows of a run besides scalars: hyperparameters, images, the graph."""

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor, nn

from vggexp.config.keys import flatten, to_plain
from vggexp.config.overrides import parse_override
from vggexp.config.run_id import network_name
from vggexp.config.schema import Config
from vggexp.loggers.run_logger import RunLogger
from vggexp.runner.datasets import DataLoaders
from vggexp.runs.predictions import Predictions, confusion_matrix, worst_mistakes

# Keys that distinguish most runs: columns of the HParams table.
COLUMNS = (
    "data.name",
    "data.resize",
    "data.batch_size",
    "optimizer.name",
    "optimizer.lr",
    "optimizer.weight_decay",
    "scheduler.name",
    "train.epochs",
    "seed",
)
FIRST_IMAGES = 32  # of the first batch
WORST_MISTAKES = 25


def hyperparameters(
    config: Config, overrides: Sequence[str]
) -> dict[str, bool | int | float | str]:
    """Returns the columns of the HParams table: the network, `COLUMNS`, and the typed keys."""
    typed = [parse_override(text).key for text in overrides]
    values = flatten(to_plain(config))
    columns: dict[str, bool | int | float | str] = {"network": network_name(config)}
    for key in (*COLUMNS, *typed):
        value = values.get(key)
        if value is None or key.startswith(("run.", "sweep.")):
            continue
        columns[key] = value if isinstance(value, bool | int | float) else str(value)
    return columns


def log_first_images(logger: RunLogger, data: DataLoaders) -> None:
    """Writes the first training images as the network receives them."""
    from vggexp.loggers.images import image_grid

    images, _ = next(iter(data.train.train(0)))
    grid = image_grid(images[:FIRST_IMAGES].float().cpu().numpy())
    logger.tensorboard.images("images/first_batch", grid)


def log_test_images(
    logger: RunLogger, data: DataLoaders, probs: Tensor, labels: Tensor, epoch: int
) -> None:
    """Writes the confusion matrix and the most confident mistakes of the test set.

    Args:
        logger: the logger of the run.
        data: gives the class names and the test images.
        probs: [N, classes].
        labels: [N].
        epoch: the step of both images in TensorBoard.
    """
    from vggexp.loggers.images import confusion_image, mistakes_image

    predictions = Predictions(probs.numpy(), labels.numpy())
    counts = confusion_matrix(predictions.labels, predictions.predicted, len(data.classes))
    image = confusion_image(counts, data.classes)
    logger.tensorboard.images("test/confusion", image, epoch)
    mistakes = worst_mistakes(predictions, WORST_MISTAKES)
    indices = torch.tensor([mistake.index for mistake in mistakes], dtype=torch.int64)
    image = mistakes_image(
        data.test_images(indices).numpy(),
        numpy.array([mistake.label for mistake in mistakes]),
        numpy.array([mistake.predicted for mistake in mistakes]),
        numpy.array([mistake.prob for mistake in mistakes]),
        data.classes,
    )
    logger.tensorboard.images("test/worst_mistakes", image, epoch)


def log_graph(logger: RunLogger, model: nn.Module, data: DataLoaders) -> None:
    """Writes the graph of the network for one test image."""
    images, _ = next(iter(data.test.evaluate()))
    logger.tensorboard.graph(model, images[:1])
