"""The time of an epoch is booked to its parts."""

import time

import pytest
import torch

from vggexp.training.timer import PARTS, PhaseTimer

SLEEPS = [("data", 0.02), ("compute", 0.03), ("data", 0.02), ("evaluation", 0.05)]


def test_laps_book_time_to_their_parts():
    clock = PhaseTimer(torch.device("cpu"))
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


class Stream:
    """A device that the host runs ahead of: it works for as long as it is given, whatever the host's clock says."""

    def __init__(self):
        self.milliseconds = 0.0

    def event(self):
        return Event(self.milliseconds)


class Event:
    def __init__(self, at: float):
        self.at = at

    def elapsed_time(self, other: "Event") -> float:
        return other.at - self.at

    def synchronize(self) -> None: ...


def test_on_a_device_its_own_time_is_divided(monkeypatch):
    stream = Stream()
    monkeypatch.setattr(PhaseTimer, "_event", lambda clock: stream.event())
    clock = PhaseTimer(torch.device("cuda"))
    for part, milliseconds in (
        ("data", 10),
        ("compute", 300),
        ("logging", 1),
        ("compute", 200),
        ("evaluation", 50),
    ):
        stream.milliseconds += milliseconds
        clock.lap(part)
    stream.milliseconds += 9000
    clock.exclude_elapsed()
    stream.milliseconds += 7
    clock.lap("checkpoint")
    expected = {
        "data": 0.01,
        "compute": 0.5,
        "logging": 0.001,
        "evaluation": 0.05,
        "checkpoint": 0.007,
    }
    for _ in range(2):  # reading changes nothing
        times = clock.read()
        assert {part: times[f"time/{part}_seconds"] for part in PARTS} == pytest.approx(
            {part: expected.get(part, 0) for part in PARTS}
        )


def test_an_epoch_of_two_processes_has_the_times_of_both():
    earlier = {"time/epoch_seconds": 100.0, "time/data_seconds": 30.0, "time/compute_seconds": 70.0}
    clock = PhaseTimer(torch.device("cpu"))
    clock.start(earlier)
    clock.lap("data")
    clock.exclude_elapsed()
    times = clock.read()
    assert 100 < times["time/epoch_seconds"] < 101 and 30 < times["time/data_seconds"] < 31
    assert times["time/compute_seconds"] == 70
