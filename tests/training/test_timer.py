"""The time of an epoch is booked to its parts."""

import time

import pytest
import torch

from vggexp.training.timer import PARTS, PhaseTimer

SLEEPS = [("data", 0.02), ("compute", 0.03), ("data", 0.02), ("evaluation", 0.05)]


def test_laps_book_time_to_their_parts():
    timer = PhaseTimer(torch.device("cpu"))
    timer.lap("logging")
    timer.start()  # forgets the time before
    for part, seconds in SLEEPS:
        time.sleep(seconds)
        timer.lap(part)
    times = timer.read()
    assert list(times) == ["time/epoch_seconds", *(f"time/{part}_seconds" for part in PARTS)]
    for part in PARTS:
        slept = sum(seconds for name, seconds in SLEEPS if name == part)
        booked = times[f"time/{part}_seconds"]
        assert booked >= slept
        if slept == 0:
            assert booked == 0
    assert sum(times[f"time/{part}_seconds"] for part in PARTS) <= times["time/epoch_seconds"]


class Event:
    def __init__(self, milliseconds: float):
        self.milliseconds = milliseconds

    def elapsed_time(self, later: "Event") -> float:
        return later.milliseconds - self.milliseconds

    def synchronize(self) -> None: ...


class Stream:
    """A device that the host runs ahead of: it has a time of its own."""

    def __init__(self):
        self.milliseconds = 0.0

    def event(self) -> Event:
        return Event(self.milliseconds)


def test_on_a_device_the_time_of_the_device_is_divided():
    stream = Stream()
    timer = PhaseTimer(torch.device("cuda"), record_event=stream.event)
    laps = [("data", 10), ("compute", 300), ("logging", 1), ("compute", 200), ("evaluation", 50)]
    for part, milliseconds in laps:
        stream.milliseconds += milliseconds
        timer.lap(part)
    stream.milliseconds += 9000
    timer.exclude_elapsed()
    stream.milliseconds += 7
    timer.lap("checkpoint")
    expected = dict.fromkeys(PARTS, 0.0) | {
        "data": 0.01,
        "compute": 0.5,
        "logging": 0.001,
        "evaluation": 0.05,
        "checkpoint": 0.007,
    }
    for _ in range(2):  # reading changes nothing
        times = timer.read()
        booked = {part: times[f"time/{part}_seconds"] for part in PARTS}
        assert booked == pytest.approx(expected)


def test_an_epoch_of_two_processes_has_the_times_of_both():
    earlier = {"time/epoch_seconds": 100.0, "time/data_seconds": 30.0, "time/compute_seconds": 70.0}
    timer = PhaseTimer(torch.device("cpu"))
    timer.start(earlier)
    timer.lap("data")
    timer.exclude_elapsed()
    times = timer.read()
    assert times["time/epoch_seconds"] == pytest.approx(100, abs=1)
    assert times["time/epoch_seconds"] > 100
    assert times["time/data_seconds"] == pytest.approx(30, abs=1)
    assert times["time/data_seconds"] > 30
    assert times["time/compute_seconds"] == 70


def test_the_pauses_of_all_epochs_are_summed():
    now = 0.0
    timer = PhaseTimer(torch.device("cpu"), clock=lambda: now)
    for pause in (30.0, 12.0):
        timer.start()
        now += 100.0
        timer.lap("compute")
        now += pause
        timer.exclude_elapsed()
        assert timer.read()["time/epoch_seconds"] == 100
    assert timer.paused_seconds == 42
