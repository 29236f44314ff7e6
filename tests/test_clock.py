"""The time of an epoch is booked to its parts."""

import time

import torch

from vggexp.clock import PARTS, Clock

SLEEPS = [("data", 0.02), ("compute", 0.03), ("data", 0.02), ("evaluation", 0.05)]


def test_laps_book_time_to_their_parts():
    clock = Clock(torch.device("cpu"))
    clock.lap("logging")
    clock.start()  # what was before is forgotten
    for part, seconds in SLEEPS:
        time.sleep(seconds)
        clock.lap(part)
    times = clock.read()
    assert list(times) == ["time/epoch_seconds", *(f"time/{part}_seconds" for part in PARTS)]
    for part in PARTS:
        planted = sum(seconds for name, seconds in SLEEPS if name == part)
        assert times[f"time/{part}_seconds"] >= planted
        assert planted or times[f"time/{part}_seconds"] == 0
    assert sum(times[f"time/{part}_seconds"] for part in PARTS) <= times["time/epoch_seconds"]
