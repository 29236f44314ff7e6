"""Tests the progress of a sweep without a terminal."""

from pathlib import Path

from vggexp.loggers.console import Console
from vggexp.sweep.progress import RunningJob, SweepProgress


def test_the_lines_and_the_done_share_of_a_sweep(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text("{}\n" * 2)  # two finished epochs
    with SweepProgress([4.0, 2.0, 2.0, 8.0], slots=2, console=Console(None)) as progress:
        progress.previously_done(3, ok=True, text="d")
        assert progress.share() == 0
        progress.job_started(0, RunningJob(0, tmp_path, epochs=4, log=Path("log")))
        assert progress.share() == 0.25
        progress.on_wait(1, "b")
        progress.job_ended(2, "failed", "c  reason")
        assert progress.share() == 0.5
        assert progress.summary().startswith("1 of 4 jobs done, 1 failed, 1 running, about ")
        progress.slot_freed(0)
        progress.job_ended(0, "finished", "a  val/accuracy 0.9000")
        assert progress.share() == 0.75
    assert capsys.readouterr().out.splitlines() == [
        f"started  job 1/4  {tmp_path.name}",
        "waits    job 2/4  b  (another process works on it)",
        "failed   job 3/4  c  reason",
        "finished job 1/4  a  val/accuracy 0.9000",
    ]


def test_only_the_epochs_that_were_missing_count(tmp_path):
    """Of six epochs an earlier attempt finished two; the test is a fifth of the rest."""
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("{}\n" * 2)
    now = 0.0
    with SweepProgress([10.0], slots=1, clock=lambda: now) as progress:
        job = RunningJob(0, tmp_path, 6, Path("log"), trained=2, epochs_share=0.8)
        progress.job_started(0, job)
        now = 10.0
        assert progress.summary() == "0 of 1 job done, 1 running"
        metrics.write_text("{}\n" * 4)
        assert progress.share() == 0.4
        assert progress.summary() == "0 of 1 job done, 1 running, about 15.0 s left"
        metrics.write_text("{}\n")  # the newest checkpoint was older than the metrics
        assert progress.share() == 0


def test_a_job_that_has_only_its_test_left_has_no_share_before_its_end(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}\n" * 4)
    with SweepProgress([10.0], slots=1) as progress:
        progress.job_started(0, RunningJob(0, tmp_path, 4, Path("log"), trained=4, epochs_share=0))
        assert progress.share() == 0


def test_the_time_left_runs_down_and_is_then_longer_than_expected(tmp_path):
    now = 0.0
    with SweepProgress([10.0], slots=1, clock=lambda: now) as progress:
        progress.job_started(0, RunningJob(0, tmp_path, 4, Path("log"), epochs_share=0.8))
        now = 50.0
        assert progress.summary() == "0 of 1 job done, 1 running"  # nothing is known yet
        metrics = tmp_path / "metrics.jsonl"
        for epochs, time, left in [
            (2, 60.0, "about 90.0 s left"),  # 0.4 of the work in 60 s
            (2, 100.0, "about 50.0 s left"),
            (4, 100.0, "about 25.0 s left"),  # the test remains, 0.2 of the work
            (4, 125.0, "longer than expected"),
            (4, 1000.0, "longer than expected"),
        ]:
            metrics.write_text("{}\n" * epochs)
            now = time
            assert progress.summary() == f"0 of 1 job done, 1 running, {left}"
