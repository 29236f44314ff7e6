"""Measures how the wall time of an epoch divides into its parts."""

import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch

PARTS = ("data", "copy", "compute", "optimizer", "evaluation", "checkpoint", "logging")
OTHER = ""  # time that belongs to no part


def add_throughput(times: dict[str, float], images: int) -> dict[str, float]:
    """Adds images_per_second; evaluation and checkpoints do not count as training time."""
    training_seconds = times["time/epoch_seconds"]
    training_seconds -= times["time/evaluation_seconds"] + times["time/checkpoint_seconds"]
    return {"images_per_second": images / max(1e-9, training_seconds), **times}


def record_cuda_event() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class PhaseTimer:
    """Books time to parts: `lap(part)` books the time since the last lap to `part`.

    On CUDA the host runs ahead of the device, so a lap is an event on the device's stream. The
    device's time is divided without a gap, and a wait of the device counts as the part that the
    device waits for. The events are read once, at the end of the epoch. A copy to the device is a
    part of `data`; `copy` is always 0, for readers of older files.
    """

    def __init__(
        self,
        device: torch.device,
        clock: Callable[[], float] = time.perf_counter,
        record_event: Callable[[], Any] = record_cuda_event,
    ):
        self.on_device = device.type == "cuda"
        self.clock = clock
        self.record_event = record_event
        self.paused_seconds = 0.0  # of all epochs
        self.start()

    def start(self, elapsed: Mapping[str, float] = {}) -> None:
        """Starts an epoch.

        Args:
            elapsed: What `read` returned in an earlier process that worked on the same epoch.
        """
        self.seconds = {part: elapsed.get(f"time/{part}_seconds", 0.0) for part in PARTS}
        self.seconds[OTHER] = 0.0
        self.events: list[tuple[str, Any]] = []
        if self.on_device:
            self.events.append((OTHER, self.record_event()))
        self.last = self.clock()
        self.started = self.last - elapsed.get("time/epoch_seconds", 0.0)

    def lap(self, part: str) -> None:
        now = self.clock()
        if self.on_device:
            self.events.append((part, self.record_event()))
        else:
            self.seconds[part] += now - self.last
        self.last = now

    def exclude_elapsed(self) -> None:
        """Leaves out the time since the last lap, which was a pause."""
        last = self.last
        self.lap(OTHER)
        pause = self.last - last
        self.started += pause
        self.paused_seconds += pause

    def read(self) -> dict[str, float]:
        """Returns the seconds since `start`, in all and by part, by their keys in metrics.jsonl."""
        if self.on_device:
            self._read_events()
        times = {"time/epoch_seconds": self.clock() - self.started}
        for part in PARTS:
            times[f"time/{part}_seconds"] = self.seconds[part]
        return times

    def _read_events(self) -> None:
        _, newest = self.events[-1]
        newest.synchronize()
        for (_, before), (part, after) in pairwise(self.events):
            self.seconds[part] += before.elapsed_time(after) / 1000
        del self.events[:-1]
