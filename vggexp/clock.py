"""Where the wall time of an epoch goes."""

import time
from collections import defaultdict
from typing import Any

import torch

PARTS = ("data", "copy", "compute", "optimizer", "evaluation", "checkpoint", "logging")
ON_DEVICE = ("compute", "optimizer")


class Clock:
    """`lap(part)` books the time since the last lap to `part`.

    On CUDA the host runs ahead of the device, so the parts that run there are measured by events on its stream, which
    are read once, at the end of the epoch.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.start()

    def start(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.events: list[tuple[str, Any]] = [("", self._event())] if self.device.type == "cuda" else []
        self.started = self.last = time.perf_counter()

    def _event(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        if self.events and part in ("data", "copy", *ON_DEVICE):
            self.events.append((part, self._event()))
        else:
            self.seconds[part] += now - self.last
        self.last = now

    def leave_out(self) -> None:
        """What has passed since the last lap counts for nothing: a rest."""
        now = time.perf_counter()
        self.started, self.last = self.started + now - self.last, now

    def read(self) -> dict[str, float]:
        """Seconds since `start` in all and by part, under the keys of metrics.jsonl."""
        if self.events:
            torch.cuda.synchronize()
            for (_, before), (part, after) in zip(self.events, self.events[1:], strict=False):
                self.seconds[part] += before.elapsed_time(after) / 1000
            self.events = [("", self._event())]
        times = {"time/epoch_seconds": time.perf_counter() - self.started}
        return times | {f"time/{part}_seconds": self.seconds[part] for part in PARTS}
