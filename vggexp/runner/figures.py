"""Writes what TensorBoard shows of a run besides scalars and hyperparameters: images, the graph."""

import torch
from torch import Tensor, nn

from vggexp.loggers.run_logger import RunLogger
from vggexp.runner.datasets import DataLoaders
from vggexp.runs.confusion import count_confusions
from vggexp.runs.predictions import Predictions, worst_mistakes

FIRST_IMAGES = 32  # of the first batch
WORST_MISTAKES = 25


def log_first_images(logger: RunLogger, images: Tensor) -> None:
    """Writes the first of a batch of images [N, C, H, W], as the network receives them."""
    from vggexp.loggers.images import image_grid

    grid = image_grid(images[:FIRST_IMAGES].float().cpu().numpy())
    logger.tensorboard.images("train/first_batch", grid)


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
    confusions = count_confusions(labels.numpy(), predictions.predicted, len(data.classes))
    image = confusion_image(confusions, data.classes)
    logger.tensorboard.images("test/confusion", image, epoch)
    mistakes = worst_mistakes(predictions, WORST_MISTAKES)
    indices = torch.tensor([mistake.index for mistake in mistakes], dtype=torch.int64)
    image = mistakes_image(data.test_images(indices).numpy(), mistakes, data.classes)
    logger.tensorboard.images("test/worst_mistakes", image, epoch)


def log_graph(logger: RunLogger, model: nn.Module, data: DataLoaders) -> None:
    """Writes the graph of the network for one test image."""
    images, _ = next(iter(data.test.evaluate()))
    logger.tensorboard.graph(model, images[:1])
