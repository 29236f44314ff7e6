"""Successive halving: decides which settings of a sweep train on, and which stop early.

All runs train to the same epoch, a rung. The best 1/K of the settings go on to the next rung. A
rung waits for all of its runs, and a decision reads nothing but the metrics of the rung's epoch.
So the same command takes the same decisions on any day, on any number of jobs at a time.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from statistics import fmean
from typing import NamedTuple

from vggexp.config.keys import to_plain
from vggexp.config.run_id import identity, run_name
from vggexp.config.schema import Config, Sweep
from vggexp.errors import VggexpError
from vggexp.formatting import format_value, plural, shorten
from vggexp.runs import records
from vggexp.runs.repeats import rank_key

Job = tuple[str, ...]  # the overrides of a job
Jobs = Mapping[Job, Config]
ENDED = ("done", "failed")  # of the runs that a rung does not wait for
NEVER_CONTINUES = "continues its own runs, which resume=never forbids; leave resume out"
MAX_NAMES_CHARS = 200  # of the runs that a line lists


class PlannedRung(NamedTuple):
    """A rung as it is known before the sweep starts."""

    number: int  # from 1
    epochs: int  # to which its runs train
    settings: int  # that enter it, unless runs fail


@dataclass(frozen=True)
class Rung:
    """A rung with the jobs that enter it. The runs of the last rung train to their end."""

    number: int
    epochs: int
    jobs: Jobs  # by the overrides of the whole sweep; with `run.until` in their configurations

    def launched_jobs(self) -> dict[Job, Config]:
        """Returns the jobs by the overrides with which they are launched."""
        return {launched_job(job, config): config for job, config in self.jobs.items()}

    def line(self) -> str:
        """Returns `rung 1   9 runs to epoch 3`."""
        return f"rung {self.number}   {plural(len(self.jobs), 'run')} to epoch {self.epochs}"


def launched_job(job: Job, config: Config) -> Job:
    """Returns the overrides with which a job of a rung is launched."""
    until = config.run.until
    return job if until is None else (*job, f"run.until={until}")


def plan_rungs(
    epochs: int, factor: int, settings: int, start: int | None = None
) -> list[PlannedRung]:
    """Returns the rungs: at epochs / factor^i, and the last one at `epochs`.

    Args:
        epochs: of a whole run.
        factor: of the settings that enter a rung, 1 / factor go on, rounded up.
        settings: how many settings the sweep has.
        start: the epoch of the first rung; None: as late as leaves fewer than `factor` settings
            for the last rung, or as early as the epochs allow.
    """
    rungs: list[PlannedRung] = []
    remaining = settings
    for number, end in enumerate(_rung_epochs(epochs, factor, settings, start), 1):
        if remaining == 1:  # a single setting has nothing left to win against
            end = epochs
        rungs.append(PlannedRung(number, end, remaining))
        if end == epochs:
            break
        remaining = ceil(remaining / factor)
    return rungs


def _rung_epochs(epochs: int, factor: int, settings: int, start: int | None) -> list[int]:
    ends = [epochs]
    while ends[-1] // factor >= (start or 1):
        ends.append(ends[-1] // factor)
    if start is None:
        halvings = 1
        remaining = ceil(settings / factor)
        while remaining >= factor:
            remaining = ceil(remaining / factor)
            halvings += 1
        ends = ends[: halvings + 1]
    elif ends[-1] != start:
        ends.append(start)
    return ends[::-1]


def plan_sweep(jobs: Jobs, sweep: Sweep) -> list[PlannedRung]:
    """Returns the rungs of a sweep with `sweep.halving`."""
    assert sweep.halving is not None
    settings = group_settings(jobs).values()
    epochs = next(iter(jobs.values())).train.epochs
    return plan_rungs(epochs, sweep.halving, len(settings), sweep.halving_start)


def most_repeats(jobs: Jobs) -> int:
    """Returns the largest number of seeds of a setting."""
    return max(map(len, group_settings(jobs).values()))


def halving_problems(sweep: Sweep, configs: Sequence[Config]) -> Iterator[str]:
    """Yields a problem for each key that does not fit `sweep.halving`.

    Args:
        sweep: the section `sweep`.
        configs: the jobs of a grid, or those by which a search is checked.
    """
    if sweep.halving is None:
        if sweep.halving_start is not None:
            yield f"sweep.halving_start={sweep.halving_start}: needs sweep.halving, as 3"
        return
    text = f"sweep.halving={sweep.halving}"
    first = configs[0]
    epochs = {config.train.epochs for config in configs}
    if len(epochs) > 1:
        values = ", ".join(map(str, sorted(epochs)))
        yield f"{text}: the jobs have train.epochs {values}; give all jobs the same"
    elif sweep.halving_start is not None and sweep.halving_start >= first.train.epochs:
        yield (
            f"sweep.halving_start={sweep.halving_start}: at most one less than "
            f"train.epochs={first.train.epochs}"
        )
    elif sweep.halving_start is None and first.train.epochs < sweep.halving:
        yield (
            f"{text}: the first rung would be before epoch 1 of "
            f"train.epochs={first.train.epochs}; give sweep.halving_start=1 or more epochs"
        )
    endings = {config.augment.flip_only_fraction: None for config in configs}
    if len(endings) > 1:
        values = ", ".join(map(format_value, endings))
        yield (
            f"{text}: the jobs have augment.flip_only_fraction {values}; a rung may "
            "come before the epochs in which they differ; give all jobs the same"
        )
    if any(config.run.until is not None for config in configs):
        yield f"{text}: it sets run.until itself; leave run.until out"
    if first.resume == "never":
        yield f"{text}: {NEVER_CONTINUES}"
    yield from objective_problems(text, sweep, configs)


def objective_problems(text: str, sweep: Sweep, configs: Sequence[Config]) -> Iterator[str]:
    """Yields a problem if the epochs of a run do not have the metric that ranks the runs.

    Args:
        text: the key that ranks, as typed.
    """
    tests = all(config.train.test_each_epoch for config in configs)
    if sweep.objective.startswith("test/") and not tests:
        yield (
            f"{text}: ranks by sweep.objective={sweep.objective} during the training; "
            "choose val/accuracy, or set train.test_each_epoch=true"
        )


def choose_survivors(scores: Mapping[str, float | None], count: int, objective: str) -> list[str]:
    """Returns the names of the best settings, the best first, equal ones by name.

    Args:
        scores: of each setting by its name; None for a setting that is out.
        count: how many go on at most.
        objective: the metric.
    """
    ranked = [name for name, score in scores.items() if score is not None]
    ranked.sort(key=lambda name: (*rank_key(scores[name], objective), name))
    return ranked[:count]


def group_settings(jobs: Jobs) -> dict[str, Jobs]:
    """Groups the jobs that differ only in their seed, by the name of the first run of a group."""
    groups: dict[str, dict[Job, Config]] = {}
    for job, config in jobs.items():
        keys = identity(to_plain(config))
        keys.pop("seed", None)
        groups.setdefault(format_value(keys), {})[job] = config
    return {run_name(next(iter(group.values()))): group for group in groups.values()}


def run_rungs(jobs: Jobs, sweep: Sweep) -> Iterator[Rung]:
    """Yields each rung; the caller trains its jobs before it takes the next one.

    Ends early if a rung has a run that was interrupted or did not start, and with
    sweep.on_error=stop one that failed. A caller that trains nothing gets the rungs of a sweep
    that has ended.
    """
    settings = group_settings(jobs)
    rungs = plan_sweep(jobs, sweep)
    for planned, following in zip(rungs, [*rungs[1:], None], strict=True):
        rung_jobs = {}
        for group in settings.values():
            for job, config in group.items():
                rung_jobs[job] = config if following is None else _with_until(config, planned)
        rung = Rung(planned.number, planned.epochs, rung_jobs)
        yield rung
        if following is None or undecided_line(rung):
            return
        scores = {}
        for name, group in settings.items():
            scores[name] = setting_score(group.values(), planned.epochs, sweep.objective)
        if sweep.on_error == "stop" and None in scores.values():
            return
        chosen = choose_survivors(scores, following.settings, sweep.objective)
        settings = {name: group for name, group in settings.items() if name in chosen}
        if not settings:
            return


def _with_until(config: Config, rung: PlannedRung) -> Config:
    return replace(config, run=replace(config.run, until=rung.epochs))


def setting_score(configs: Iterable[Config], epoch: int, objective: str) -> float | None:
    """Returns the mean over the seeds after an epoch; None if a run has no score there."""
    scores = []
    for config in configs:
        score = score_at(config, epoch, objective)
        if score is None:
            return None
        scores.append(score)
    return fmean(scores)


def score_at(config: Config, epoch: int, objective: str) -> float | None:
    """Returns the objective of a run after an epoch, or after the last one if it stopped early.

    None for a run that failed, or whose objective is not a number.
    """
    rows = records.epoch_rows(config, records.run_dir(config))
    if len(rows) < epoch and (not rows or _status(config) != "done"):
        return None
    return rows[min(epoch, len(rows)) - 1].get(objective)


def run_score(config: Config, objective: str) -> float | None:
    """Returns the objective of a run that has finished, or that has the epochs of its rung."""
    try:
        result = records.done_result(config)
    except VggexpError:
        return None
    if result is None:
        return None
    if config.run.until is not None:
        return score_at(config, config.run.until, objective)
    return result.get(objective)


def undecided_line(rung: Rung) -> str:
    """Returns why a rung that was launched cannot be decided.

    "" if every run has its epochs, or has failed.
    """
    missing = []
    advice = "run the same command again"
    retry = ""
    for config in rung.jobs.values():
        status = _status(config)
        if status not in ENDED:
            missing.append(run_name(config))
            if status == "not started":
                advice = "run the same command again, or leave these jobs out (sweep.where)"
        elif status == "failed" and config.sweep.on_error == "stop" and not _has_work(config):
            retry = "sweep.retry_failed=true tries again"
    if not missing:
        return ""
    names = shorten(", ".join(missing), MAX_NAMES_CHARS)
    return f"rung {rung.number} is undecided, epochs are missing: {names}; {retry or advice}"


def entered_rungs(jobs: Jobs, sweep: Sweep) -> list[Rung]:
    """Returns the rungs up to the first one with work; all rungs of a sweep that has ended."""
    rungs = []
    for rung in run_rungs(jobs, sweep):
        rungs.append(rung)
        if has_work(rung):
            break
    return rungs


def has_work(rung: Rung) -> bool:
    """Returns whether a job of a rung has to be launched."""
    return any(map(_has_work, rung.jobs.values()))


def missing_epochs(rung: Rung) -> dict[Job, int]:
    """Returns the jobs of a rung that have to be launched, with the epochs that each one misses."""
    missing = {}
    for job, config in rung.jobs.items():
        if _has_work(config):
            trained = len(records.epoch_rows(config, records.run_dir(config)))
            missing[job] = rung.epochs - trained
    return missing


def _has_work(config: Config) -> bool:
    status = _status(config)
    return status != "done" and (status != "failed" or config.sweep.retry_failed)


def _status(config: Config) -> str:
    """Returns `done` for a run with all epochs of its rung, otherwise the state of the run.

    A run whose folder cannot be read, or holds another run, has failed.
    """
    folder = records.run_dir(config)
    try:
        if records.done_result(config) is not None:
            return "done"
        return records.run_state(folder, records.own_result(config, folder))
    except VggexpError:
        return "failed"
