"""Composes result.json of a finished run: metrics, weights, times and counts."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from torch import Tensor

from vggexp.config.derived import layers
from vggexp.config.schema import Config
from vggexp.models.shapes import parameters
from vggexp.training.checkpoint import weights_sha256
from vggexp.training.checkpoint_manager import best_epoch
from vggexp.training.loop import EpochMetrics, TrainState


def tested_epoch(history: Sequence[EpochMetrics], test_weights: str) -> EpochMetrics:
    """Returns the metrics of the epoch whose weights are tested.

    Args:
        history: the metrics of all epochs.
        test_weights: "last", or "best" for the first epoch of the best validation accuracy.
    """
    if test_weights == "best":
        return best_epoch(history) or history[-1]
    return history[-1]


def result_fields(
    config: Config,
    state: TrainState,
    epoch_metrics: EpochMetrics,
    scores: dict[str, float],
    weights: dict[str, Tensor],
) -> dict[str, Any]:
    """Returns the fields of result.json, without times and memory.

    Args:
        config: the configuration.
        state: the state after the last epoch.
        epoch_metrics: of the epoch whose weights were tested; gives train/... and val/...
        scores: test/loss and test/accuracy.
        weights: the tested weights.
    """
    fields: dict[str, Any] = {
        "epoch": state.epoch,
        "step": state.step,
        "micro_batches": state.micro_batches,
    }
    for key, value in epoch_metrics.items():
        if key.startswith(("train/", "val/")):
            fields[key] = value
    fields |= scores
    fields["test_weights"] = config.train.test_weights
    fields["weights_step"] = epoch_metrics["step"]
    fields["weights_sha256"] = weights_sha256(weights)
    best = best_epoch(state.history)
    if best is not None:
        fields["best/epoch"] = best["epoch"]
        fields["best/val/accuracy"] = best["val/accuracy"]
    fields["images_per_second"] = float(median(row["images_per_second"] for row in state.history))
    fields["parameters"] = parameters(layers(config))
    return fields


def paused_fields(config: Config, state: TrainState) -> dict[str, Any]:
    """Returns the fields of result.json of a run that is paused: the metrics of its last epoch."""
    last = state.history[-1]
    fields: dict[str, Any] = {
        "epoch": state.epoch,
        "step": state.step,
        "micro_batches": state.micro_batches,
    }
    for key, value in last.items():
        if key.startswith(("train/", "val/", "test/")):
            fields[key] = value
    fields["seconds"] = sum(row["time/epoch_seconds"] for row in state.history)
    fields["parameters"] = parameters(layers(config))
    return fields


def total_times(history: Sequence[EpochMetrics], end: Mapping[str, float]) -> dict[str, float]:
    """Returns the seconds of a run, as a whole and by part.

    Args:
        history: the metrics of all epochs, with their times.
        end: the times after the last epoch, of the last checkpoint and the test. The test is
            evaluation, and `time/test_seconds` says how much of the evaluation it is.
    """
    total: dict[str, float] = {}
    for key, seconds in end.items():
        total[key] = seconds + sum(row[key] for row in history)
    total["time/test_seconds"] = end["time/evaluation_seconds"]
    return {"seconds": total.pop("time/epoch_seconds"), **total}
