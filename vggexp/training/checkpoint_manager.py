"""Which checkpoints a run keeps, and which one it continues from."""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vggexp.distributed import collectives, stop
from vggexp.errors import CheckpointError, ResourceError
from vggexp.models.costs import KEEP_NEWEST
from vggexp.training import checkpoint
from vggexp.training.loop import EpochMetrics, TrainState

FORMAT_VERSION = 1
FREE_SPACE_FACTOR = 1.1  # free space that must be there over what is needed


class CheckpointManager:
    """The folder `checkpoints` of a run: %08d.pt by step; no link and no pointer file that could dangle."""

    def __init__(self, folder: Path, keep: str, minutes: float, facts: dict[str, Any]):
        """keep: all, last or weights. facts: plain values and tensors that are stored with every checkpoint."""
        self.folder = folder
        self.keep = keep
        self.seconds = minutes * 60
        self.facts = facts
        self.folder.mkdir(exist_ok=True)
        for left in self.folder.glob("*.tmp"):  # of a process that was killed while it wrote
            left.unlink()
        self.saved = time.monotonic()

    def path(self, step: int) -> Path:
        return self.folder / checkpoint_name(step)

    def due(self) -> bool:
        return time.monotonic() - self.saved >= self.seconds

    def save(self, state: TrainState) -> None:
        """Raises ResourceError, and leaves the earlier checkpoints as they are."""
        checkpoint.save(
            self.path(state.step), {"format": FORMAT_VERSION, **self.facts, **state.capture()}
        )
        self.saved = time.monotonic()
        if self.keep != "all":
            self._prune(best_epoch(state.history))

    def _prune(self, best: EpochMetrics | None) -> None:
        """Only after the newest is durable; the newest is never deleted."""
        for path in find_checkpoints(self.folder)[KEEP_NEWEST:]:
            if best is None or int(path.stem) != best["step"]:
                path.unlink()

    def leave_only(self, step: int, content: dict[str, Any]) -> None:
        """keep=weights: one file with the final weights in place of all checkpoints."""
        for path in find_checkpoints(self.folder):
            if int(path.stem) != step:
                path.unlink()
        checkpoint.save(self.path(step), {"format": FORMAT_VERSION, **self.facts, **content})


def checkpoint_name(step: int) -> str:
    return f"{step:08d}.pt"


class DistributedCheckpointManager:
    """The checkpoints of several ranks: all come to the same step, look whether they agree, and rank 0 writes.

    checkpoints: of rank 0.
    """

    def __init__(self, stop: stop.DistributedStop, checkpoints: CheckpointManager | None):
        self.stop = stop
        self.checkpoints = checkpoints

    def due(self) -> bool:
        return self.stop.step(self.checkpoints is not None and self.checkpoints.due())

    def save(self, state: TrainState) -> None:
        """Raises ResourceError, RankError, on all ranks."""
        collectives.broadcast_([*state.model.buffers(), *state.eval_model().buffers()])
        weights = checkpoint.weights_sha256(dict(state.model.named_parameters()))
        collectives.assert_same_on_all_ranks(
            {"weights": weights[:8]}, "they have drifted apart, and this checkpoint is not written"
        )
        state.sums.pool()
        collectives.run_on_rank_zero(
            lambda: self.checkpoints.save(state) if self.checkpoints else None
        )


def find_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, newest first, by step and not by time."""
    paths = [path for path in folder.glob("*.pt") if path.stem.isdecimal()]
    return sorted(paths, key=lambda path: int(path.stem), reverse=True)


def best_epoch(history: Sequence[EpochMetrics]) -> EpochMetrics | None:
    """The first epoch of the best validation accuracy: whose checkpoint is kept, and is tested where asked."""
    rows = [row for row in history if "val/accuracy" in row]
    return max(rows, key=lambda row: row["val/accuracy"]) if rows else None


def load_latest(folder: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest checkpoint that verifies, None where there has been none; damaged ones are set aside.

    Raises CheckpointError where there were checkpoints and none is good: a run never starts over silently.
    """
    paths = find_checkpoints(folder)
    for path in paths:
        try:
            return check_format(checkpoint.load(path), path)
        except checkpoint.DamagedError as error:
            aside = path.with_suffix(".corrupt")
            path.rename(aside)
            warn(f"warning: {error}; set aside as {aside.name}")
    if paths or list(folder.glob("*.corrupt")):
        raise CheckpointError(f"{folder}: no checkpoint verifies; start over with resume=never")
    return None


def check_format(saved: dict[str, Any], path: Path) -> dict[str, Any]:
    version = saved.get("format") if isinstance(saved, dict) else None
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format {version}, this vggexp reads up to {FORMAT_VERSION}; update vggexp"
        )
    return saved


def check_disk_space(folder: Path, run_bytes: int) -> None:
    """Raises ResourceError where the disk will not hold a run's checkpoints, which need so much at a time."""
    here = sum(path.stat().st_size for path in find_checkpoints(folder))
    wanted = int((run_bytes - here) * FREE_SPACE_FACTOR)
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise ResourceError(
            f"{folder}: {free / 1e6:,.0f} MB free, checkpoints need {wanted / 1e6:,.0f} MB; choose another run.root"
        )
