"""Tests the progress of a sweep without a terminal."""

from pathlib import Path

from vggexp.loggers.console import Console
from vggexp.sweep.progress import RunningJob, SweepProgress


def test_the_lines_and_the_done_share_of_a_sweep(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text("{}\n" * 2)  # two finished epochs
    with SweepProgress([4.0, 2.0, 2.0, 8.0], slots=2, console=Console(None)) as progress:
        progress.previously_done(3, ok=True, text="d")
        progress.on_start()
        assert progress.share() == 0
        progress.job_started(0, RunningJob(0, tmp_path, epochs=4, log=Path("log")))
        assert progress.share() == 0.25
        progress.on_wait(1, "b")
        progress.job_ended(2, "failed", "c  reason")
        assert progress.share() == 0.5
        assert progress.summary().startswith("1 of 4 jobs done, 1 failed, 1 running, about ")
        progress.slot_freed(0)
        progress.job_ended(0, "finished", "a  0.9000")
        assert progress.share() == 0.75
    assert capsys.readouterr().out.splitlines() == [
        "before   1 of 4 jobs finished",
        f"started  1/4  {tmp_path.name}",
        "waits    2/4  b  (another process works on it)",
        "failed   3/4  c  reason",
        "finished 1/4  a  0.9000",
    ]
