"""Decides which checkpoints of a run are kept, and which checkpoint a run resumes from."""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vggexp.distributed import collectives
from vggexp.distributed.stop import DistributedStop
from vggexp.errors import LostRunError, ResourceError
from vggexp.formatting import format_bytes
from vggexp.models.costs import KEEP_NEWEST
from vggexp.system.files import make_inner_dir, refuse_link
from vggexp.training import checkpoint, checkpoint_schema
from vggexp.training.loop import EpochMetrics, TrainState

FREE_SPACE_FACTOR = 1.1  # free space that has to be there, relative to what is needed


class CheckpointManager:
    """The folder `checkpoints` of a run: %08d.pt by step.

    The folder has no link and no pointer file, which could dangle.
    """

    def __init__(self, folder: Path, keep: str, minutes: float, metadata: dict[str, Any]):
        """Creates the folder.

        Args:
            keep: "all", "last" or "weights".
            minutes: Interval between checkpoints inside an epoch.
            metadata: Plain values and tensors that are stored with every checkpoint.
        """
        self.folder = folder
        self.keep = keep
        self.interval_seconds = minutes * 60
        self.metadata = metadata
        make_inner_dir(self.folder)
        for path in self.folder.glob("*.tmp"):  # left by a process that was killed while it wrote
            path.unlink()
        self.last_save = time.monotonic()

    def path(self, step: int) -> Path:
        return self.folder / checkpoint_name(step)

    def is_due(self) -> bool:
        return time.monotonic() - self.last_save >= self.interval_seconds

    def save(self, state: TrainState) -> None:
        """Saves the state.

        Raises:
            ResourceError: The disk refused. The earlier checkpoints stay as they are.
        """
        self._write(state.step, state.capture())
        self.last_save = time.monotonic()
        if self.keep != "all":
            best = best_epoch(state.history)
            self._prune(best)

    def _write(self, step: int, content: dict[str, Any]) -> None:
        version = checkpoint_schema.FORMAT_VERSION
        checkpoint.save(self.path(step), {"format": version, **self.metadata, **content})

    def _prune(self, best: EpochMetrics | None) -> None:
        """Deletes old checkpoints once the newest is durable. The newest is never deleted."""
        for path in find_checkpoints(self.folder)[KEEP_NEWEST:]:
            if best is None or int(path.stem) != best["step"]:
                path.unlink()

    def keep_newest(self, also: int) -> None:
        """Deletes the checkpoints that a paused run does not need, unless all are to be kept.

        Args:
            also: The step of another checkpoint to keep.
        """
        if self.keep == "all":
            return
        for path in find_checkpoints(self.folder)[1:]:
            if int(path.stem) != also:
                path.unlink()

    def update_metadata(self, step: int) -> None:
        """Stores the present metadata with a checkpoint that has other values.

        The weights are then tested on this machine and data, which may have changed since the
        checkpoint was saved.
        """
        content = checkpoint_schema.load(self.path(step))
        for key, value in self.metadata.items():
            if not isinstance(value, Tensor) and content.get(key) != value:
                checkpoint.save(self.path(step), content | self.metadata)
                return

    def replace_all(self, step: int, content: dict[str, Any]) -> None:
        """Replaces all checkpoints with one file, which holds the final weights (keep=weights)."""
        for path in find_checkpoints(self.folder):
            if int(path.stem) != step:
                path.unlink()
        self._write(step, content)


def checkpoint_name(step: int) -> str:
    return f"{step:08d}.pt"


class DistributedCheckpointManager:
    """Saves the checkpoints of several ranks.

    All ranks save at the same step and check that they agree. Rank 0 writes.
    """

    def __init__(self, stop: DistributedStop, manager: CheckpointManager | None):
        """Takes the manager of rank 0, and None on the other ranks."""
        self.stop = stop
        self.manager = manager

    def is_due(self) -> bool:
        return self.stop.step(self.manager is not None and self.manager.is_due())

    def save(self, state: TrainState) -> None:
        """Saves the state on rank 0.

        Raises:
            ResourceError: The disk of rank 0 refused; raised on all ranks.
            RankError: The weights of the ranks differ; raised on all ranks.
        """
        collectives.broadcast_(state.model.buffers())
        if state.ema is not None:
            collectives.broadcast_(state.ema.module.buffers())
        weights = dict(state.model.named_parameters())
        sha256 = checkpoint.weights_sha256(weights)
        collectives.assert_same_on_all_ranks(
            {"weights": sha256[:8]},
            "they have drifted apart, and this checkpoint is not written",
        )
        state.sums.reduce_to_rank_zero()
        collectives.run_on_rank_zero(lambda: self._save_on_rank_zero(state))

    def _save_on_rank_zero(self, state: TrainState) -> None:
        if self.manager is not None:
            self.manager.save(state)


def find_checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints of a folder, newest first, by step and not by time."""
    paths = [path for path in folder.glob("*.pt") if path.stem.isdecimal()]
    return sorted(paths, key=lambda path: int(path.stem), reverse=True)


def best_epoch(history: Sequence[EpochMetrics]) -> EpochMetrics | None:
    """Returns the first epoch with the best validation accuracy, whose checkpoint is kept."""
    validated = [metrics for metrics in history if "val/accuracy" in metrics]
    return max(validated, key=lambda metrics: metrics["val/accuracy"], default=None)


def load_latest(folder: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """Returns the newest checkpoint that verifies, or None if there has never been one.

    Damaged checkpoints are renamed to .corrupt.

    Raises:
        LostRunError: There were checkpoints and none is good. A run never starts over silently.
        CheckpointError: The newest checkpoint is whole, and no run writes such content.
        ResourceError: The folder is a link, or a permission or a resource is missing.
    """
    refuse_link(folder)
    paths = find_checkpoints(folder)
    for path in paths:
        try:
            return checkpoint_schema.load(path)
        except checkpoint.DamagedError as error:
            corrupt_path = path.with_suffix(".corrupt")
            path.rename(corrupt_path)
            warn(f"warning: {error}; set aside as {corrupt_path.name}")
    if paths or list(folder.glob("*.corrupt")):
        raise LostRunError(
            f"{folder}: no checkpoint verifies; move the run's folder away to start over"
        )
    return None


def check_disk_space(folder: Path, run_bytes: int) -> None:
    """Raises ResourceError if the disk cannot hold `run_bytes` of checkpoints at a time."""
    existing = sum(path.stat().st_size for path in find_checkpoints(folder))
    needed = int((run_bytes - existing) * FREE_SPACE_FACTOR)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"{folder}: {format_bytes(free, 'B')} free, "
            f"checkpoints need {format_bytes(needed, 'B')}; choose another run.root"
        )
