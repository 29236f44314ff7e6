"""Where the wall time of an epoch goes."""

import time
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch

PARTS = ("data", "copy", "compute", "optimizer", "evaluation", "checkpoint", "logging")
OTHER = ""  # belongs to no part


class PhaseTimer:
    """`lap(part)` books the time since the last lap to `part`.

    On CUDA the host runs ahead of the device, so a lap is an event on its stream: the device's time is divided without
    a gap, what it waits for counts as the part it waits for, and the events are read once, at the end of the epoch.
    There, copies run beside the network and no part of their own is measured: `copy` stays 0.
    """

    def __init__(self, device: torch.device):
        self.on_device = device.type == "cuda"
        self.start()

    def start(self, spent: Mapping[str, float] = {}) -> None:
        """spent: what `read` gave in an earlier process that worked on the same epoch."""
        self.seconds = {part: spent.get(f"time/{part}_seconds", 0.0) for part in (*PARTS, OTHER)}
        self.events: list[tuple[str, Any]] = [(OTHER, self._event())] if self.on_device else []
        self.last = time.perf_counter()
        self.started = self.last - spent.get("time/epoch_seconds", 0.0)

    def _event(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        if self.on_device:
            self.events.append((part, self._event()))
        else:
            self.seconds[part] += now - self.last
        self.last = now

    def exclude_elapsed(self) -> None:
        """What has passed since the last lap counts for nothing: a rest."""
        before = self.last
        self.lap(OTHER)
        self.started += self.last - before

    def read(self) -> dict[str, float]:
        """Seconds since `start` in all and by part, under the keys of metrics.jsonl."""
        if self.on_device:
            self.events[-1][1].synchronize()
            for (_, before), (part, after) in pairwise(self.events):
                self.seconds[part] += before.elapsed_time(after) / 1000
            del self.events[:-1]
        times = {"time/epoch_seconds": time.perf_counter() - self.started}
        return times | {f"time/{part}_seconds": self.seconds[part] for part in PARTS}
