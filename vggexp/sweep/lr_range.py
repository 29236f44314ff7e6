"""The learning-rate range test: at which rates the training loss falls for all seeds.

Source: Smith 2017 (arXiv:1506.01186), section 3.3, which raises the rate during a single run. Here
each rate has short runs of its own. So a point of the curve says what its rate alone does, a rate
that diverges spoils no other, and seeds show what is chance.
"""

import math
import shlex
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from vggexp.config.derived import input_spec
from vggexp.config.overrides import parse_override
from vggexp.config.schema import Config, Sweep
from vggexp.errors import DivergedError, LostRunError, VggexpError
from vggexp.formatting import plural
from vggexp.runs import records
from vggexp.runs.directory import RUN_MODE
from vggexp.runs.repeats import rank_key
from vggexp.sweep.halving import NEVER_CONTINUES, objective_problems, setting_score
from vggexp.sweep.results import SweepJob, setting_columns

LEARNED = 0.9  # times the loss of guessing: a loss from here on has not fallen
LARGEST_LR = 100  # that optimizer.lr accepts


class Rate(NamedTuple):
    """What the runs of a learning rate have shown."""

    lr: float
    falls: bool  # for all seeds
    diverged: bool  # for one seed or more
    epochs: int  # that all seeds have trained
    score: float | None  # mean of sweep.objective after these epochs; None if no loss falls


def range_problems(sweep: Sweep, configs: Sequence[Config]) -> Iterator[str]:
    """Yields a problem for each key that does not fit `sweep.lr_range`."""
    if not sweep.lr_range:
        return
    if len({config.optimizer.lr for config in configs}) == 1:
        yield "sweep.lr_range=true: needs several rates, as optimizer.lr=0.001,0.01,0.1"
    if configs[0].resume == "never":
        yield f"sweep.lr_range=true: {NEVER_CONTINUES}"
    if sweep.halving is None:  # which reports it too
        yield from objective_problems("sweep.lr_range=true", sweep, configs)


def loss_falls(losses: Sequence[float], guessing_loss: float) -> bool:
    """Returns whether the training loss of a run falls.

    The last epoch must be a tenth below the loss of guessing, and not above the first epoch. The
    first epoch alone says little: a high rate may raise the loss at first, and a network that this
    leaves dead then guesses.

    Args:
        losses: the mean loss of each epoch.
        guessing_loss: of equal probabilities for all classes.
    """
    return bool(losses) and losses[-1] < LEARNED * guessing_loss and losses[-1] <= losses[0]


def has_diverged(job: SweepJob) -> bool:
    """Returns whether the loss or the gradient of the job's run was not finite."""
    return _read_result(job).get("exit_code") == DivergedError.exit_code


def _read_result(job: SweepJob) -> dict[str, Any]:
    """Returns the result of the job's run; {} if there is none or it cannot be read."""
    try:
        return {} if job.config is None else records.own_result(job.config, job.folder)
    except VggexpError:
        return {}


def range_lines(jobs: Sequence[SweepJob], objective: str, first_words: Sequence[str]) -> list[str]:
    """Returns the line of the band of rates; one for each combination of the other swept keys.

    Args:
        jobs: all jobs of the sweep. Each is judged by the epochs that it has, also if
            sweep.halving has stopped it.
        objective: the metric that chooses the best rate among those that trained the longest.
        first_words: precede the overrides of a run in its command; see `expand.first_words`.
    """
    keys, values = setting_columns([job.overrides for job in jobs], [job.config for job in jobs])
    keys = [key for key in keys if key not in ("optimizer.lr", "seed")]
    groups: dict[str, list[SweepJob]] = {}
    for job, row in zip(jobs, values, strict=True):
        label = ", ".join(f"{key}={row[key]}" for key in keys if key in row)
        groups.setdefault(label, []).append(job)
    lines = []
    for label, members in groups.items():
        check_command = _check_command(first_words, members[0].overrides)
        text = _group_text(members, objective, check_command)
        lines.append(f"rates    {label}: {text}" if label else f"rates    {text}")
    return lines


def _group_text(jobs: Sequence[SweepJob], objective: str, check_command: str) -> str:
    missing = [job for job in jobs if not _is_judged(job)]
    if missing:
        first = missing[0].folder.name
        advice = "the same command continues"
        if any(_read_result(job).get("state") == "failed" for job in missing):
            advice = "sweep.retry_failed=true tries again"
        return f"not judged, {plural(len(missing), 'run')} did not finish: {first}; {advice}"
    by_lr: dict[float, list[SweepJob]] = {}
    for job in jobs:
        assert job.config is not None
        by_lr.setdefault(job.config.optimizer.lr, []).append(job)
    rates = [_judge(lr, by_lr[lr], objective) for lr in sorted(by_lr)]
    seeds = max(map(len, by_lr.values()))
    return band_text(rates, seeds, objective, check_command)


def _is_judged(job: SweepJob) -> bool:
    """Returns whether a run has all epochs of its job, or has diverged or cannot continue."""
    try:
        is_done = job.config is not None and records.done_result(job.config) is not None
    except VggexpError:
        return False
    codes = (DivergedError.exit_code, LostRunError.exit_code)
    return is_done or _read_result(job).get("exit_code") in codes


def _judge(lr: float, jobs: Sequence[SweepJob], objective: str) -> Rate:
    diverged = any(map(has_diverged, jobs))
    falls = not diverged
    configs = []
    counts = []
    for job in jobs:
        assert job.config is not None
        losses = [row["train/loss"] for row in records.epoch_rows(job.config, job.folder)]
        falls = falls and loss_falls(losses, math.log(input_spec(job.config).classes))
        configs.append(job.config)
        counts.append(len(losses))
    epochs = min(counts)
    score = setting_score(configs, epochs, objective) if falls else None
    return Rate(lr, falls, diverged, epochs, score)


def band_text(rates: Sequence[Rate], seeds: int, objective: str, check: str) -> str:
    """Returns the band of rates around the best one, and the override to take or to try.

    Args:
        rates: all rates, rising.
        seeds: the runs of each rate.
        objective: the metric of `Rate.score`.
        check: a command that looks for the reason if no loss falls.
    """
    falls = f"loss falls for all {seeds} seeds" if seeds > 1 else "loss falls"
    falling = [index for index, rate in enumerate(rates) if rate.falls]
    smaller = f"optimizer.lr={rates[0].lr / 100:g},{rates[0].lr / 10:g}"
    larger = _larger_rates(rates[-1].lr)
    if not falling:
        try_smaller = not larger or any(rate.diverged for rate in rates)
        advice = f"try smaller rates, {smaller}" if try_smaller else f"try larger rates, {larger}"
        return (
            f"{falls} at none of {plural(len(rates), 'rate')} from {rates[0].lr:g} to "
            f"{rates[-1].lr:g}; {advice}, or look for the reason: {check}"
        )
    best = min(falling, key=lambda index: _order(rates[index], objective))
    low = high = best
    while low - 1 in falling:
        low -= 1
    while high + 1 in falling:
        high += 1
    band = f"from {rates[low].lr:g} to {rates[high].lr:g}"
    if low == high:
        band = f"at {rates[best].lr:g} alone"
    text = f"{falls} {band}; take optimizer.lr={rates[best].lr:g}"
    if rates[high] is rates[-1] and larger:
        return f"{text}, or try larger rates, {larger}"
    if best == 0:
        return f"{text}, or try smaller rates, {smaller}"
    return text


def _order(rate: Rate, objective: str) -> tuple[int, bool, float]:
    """Returns a key for `sorted`: what trained the longest comes first, then the best score."""
    return -rate.epochs, *rank_key(rate.score, objective)


def _larger_rates(lr: float) -> str:
    """Returns an override with two rates above the largest that was tried; "" if they do not fit.

    A single rate would be refused.
    """
    return f"optimizer.lr={3 * lr:g},{10 * lr:g}" if 10 * lr <= LARGEST_LR else ""


def _check_command(first_words: Sequence[str], overrides: Sequence[str]) -> str:
    """Returns the command that checks the configuration of a job with its usual rate.

    It leaves out the file of `sweep`, and the mode, which mostly only this file needs.
    """
    keys = [parse_override(text).key for text in overrides]
    chosen = [text for text in first_words if text != RUN_MODE or "sweep" not in keys]
    for text, key in zip(overrides, keys, strict=True):
        if key not in ("optimizer.lr", "seed") and not f"{key}.".startswith("sweep."):
            chosen.append(text)
    return shlex.join(["python", "-m", "vggexp.check", *chosen])
