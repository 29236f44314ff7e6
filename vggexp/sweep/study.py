"""Keeps the Optuna study of a search in one file, `study.log`, that a kill does not harm."""

import math
import random
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vggexp.errors import CheckpointError, ConfigError, ResourceError, VggexpError
from vggexp.formatting import format_metric
from vggexp.runs.directory import CONFIG, read_result
from vggexp.runs.records import load_config, missing_objective
from vggexp.runs.repeats import higher_is_better
from vggexp.sweep.results import SweepJob
from vggexp.sweep.search_space import SearchAxis, SearchSettings
from vggexp.system.files import open_no_follow, read_file

STUDY = "study.log"
MAX_STUDY_BYTES = 1 << 28
# The attribute of a trial that is set last: its run directory, or "" if its values do not fit
# together.
RUN = "run"
ERROR = "error"  # the attribute of a failed trial: why it has no value
BRACKET = "bracket"  # the attribute of a trial of a search with sweep.halving: a number from 1
ORIGINAL = "original"  # the attribute of a trial that repeats a failed one: the number of that one

Study = Any  # optuna.Study; Optuna is imported only for a search
Trial = Any  # optuna.Trial or optuna.trial.FrozenTrial
Axes = Mapping[str, SearchAxis]  # by key
Params = Mapping[str, Any]  # the values of a trial by key


class TrialResult(NamedTuple):
    """The result of a trial that has ended."""

    value: float | None  # of the objective; None if the trial failed
    error: str = ""  # why it failed
    stopped_at: int | None = None  # the epoch of the rung at which sweep.halving stopped the trial
    rung_scores: Mapping[int, float] = {}  # the objective by the epoch of each rung


class NoOpLock:
    """Replaces Optuna's lock file, which remains after a kill.

    `system.locks.lock_run_dir` locks the folder instead.
    """

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


def open_study(folder: Path, name: str | None = None, objective: str = "") -> Study:
    """Loads the study of a folder, or creates it.

    Args:
        folder: the folder of the search.
        name: the name of a new study; a study of another name is refused. None accepts any name.
        objective: the metric that a new study improves.

    Raises:
        CheckpointError: the file is no study, or the study of another search.
        ResourceError: the file cannot be written.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = folder / STUDY
    try:
        storage = _open_storage(path)
        stored_names = optuna.get_all_study_names(storage)
        if not stored_names:
            return optuna.create_study(
                study_name=name,
                storage=storage,
                direction="maximize" if higher_is_better(objective) else "minimize",
            )
        stored_name = stored_names[0]
        if name not in (None, *stored_names):
            raise CheckpointError(
                f"{folder}: holds the search {stored_name}, not {name}; "
                "choose another hydra.sweep.dir"
            )
        return optuna.load_study(study_name=stored_name, storage=storage)
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written: {error.strerror}") from error
    except CheckpointError:
        raise
    except Exception as error:  # Optuna does not check the file, so any exception may come
        raise CheckpointError(f"{path}: not a study: {type(error).__name__}: {error}") from error


def _open_storage(path: Path) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    _truncate_partial_line(path)
    backend = JournalFileBackend(str(path), lock_obj=NoOpLock())  # type: ignore[arg-type]
    return JournalStorage(backend)


def _truncate_partial_line(path: Path) -> None:
    """Removes a last line that a kill or a full disk cut.

    Optuna could not append to such a file.
    """
    with open(path, "ab", opener=open_no_follow) as file:  # Optuna would follow a link
        content = read_file(path, MAX_STUDY_BYTES)
        if not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def proposed_trials(study: Study) -> list[Trial]:
    """Returns the trials that have all their values; they may be running, or have ended.

    Of a trial that was repeated only the last attempt is returned, in the place of the first.
    """
    latest: dict[int, Trial] = {}
    for trial in study.get_trials(deepcopy=False):
        if RUN in trial.user_attrs:
            latest[trial.user_attrs.get(ORIGINAL, trial.number)] = trial
    return [latest[number] for number in sorted(latest)]


def repeat_failed_trials(study: Study, objective: str, retry_failed: bool) -> None:
    """Queues the failed trials that may have a value now: `next_trials` runs them again.

    Args:
        study: the study, in which a trial that has failed can no longer change.
        objective: the metric of the search.
        retry_failed: whether to repeat all of them; otherwise only those whose run has finished
            in the meantime.
    """
    for trial in proposed_trials(study):
        run = trial.user_attrs[RUN]
        if not run or not trial.state.is_finished() or trial.value is not None:
            continue
        if retry_failed or _read_result(run).get(objective) is not None:
            original = trial.user_attrs.get(ORIGINAL, trial.number)
            study.enqueue_trial(trial.params, user_attrs={RUN: run, ORIGINAL: original})


def next_trials(
    study: Study,
    axes: Axes,
    settings: SearchSettings,
    run_of: Callable[[Params], str],
    in_brackets: bool = False,
) -> list[Trial]:
    """Returns the trials to run next, at most `settings.parallel`; empty at the end of the search.

    A search with sweep.halving gets a whole bracket: also the trials that had ended before a kill.

    Trials that a kill interrupted come first, then the repeated ones. Each new trial has a new
    sampler, seeded by the trial's number, so a search that was interrupted proposes what it would
    have proposed.

    Args:
        study: the study.
        axes: the axes by key.
        settings: the settings of the search.
        run_of: returns the run directory for the values of a trial. Raises ConfigError if they
            do not fit together: the trial has then failed.
        in_brackets: whether the trials start together, and none starts before all have ended.
    """
    _fail_incomplete(study)
    bracket = _bracket_number(study) if in_brackets else None
    distributions = {}
    for key, axis in axes.items():
        distributions[key] = _distribution(axis)
    for _ in range((settings.parallel or 1) - len(_members(study, bracket))):
        trials = proposed_trials(study)
        study.sampler = _make_sampler(settings, len(trials))
        if any(trial.state.name == "WAITING" for trial in trials):
            trial = study.ask(distributions)  # the first that waits
            if bracket is not None:
                trial.set_user_attr(BRACKET, bracket)
        elif len(trials) < settings.n_trials:
            _propose(study.ask(distributions), run_of, bracket)
    return _members(study, bracket) if _running_trials(study) else []


def _bracket_number(study: Study) -> int:
    """Returns the bracket of the trials that are running, or else that of the next trials."""
    numbers = [trial.user_attrs.get(BRACKET) or 0 for trial in proposed_trials(study)]
    running = [trial.user_attrs.get(BRACKET) or 0 for trial in _running_trials(study)]
    return max(running, default=0) or max(numbers, default=0) + 1


def _members(study: Study, bracket: int | None) -> list[Trial]:
    """Returns the running trials, and all others of a bracket."""
    members = []
    for trial in proposed_trials(study):
        is_member = bracket is not None and trial.user_attrs.get(BRACKET) == bracket
        if is_member or trial.state.name == "RUNNING":
            members.append(trial)
    return members


def _propose(trial: Trial, run_of: Callable[[Params], str], bracket: int | None) -> None:
    """Sets the bracket and the run of a new trial."""
    if bracket is not None:
        trial.set_user_attr(BRACKET, bracket)
    run = ""
    try:
        run = run_of(trial.params)
    except ConfigError as error:
        trial.set_user_attr(ERROR, str(error))
    trial.set_user_attr(RUN, run)


def _running_trials(study: Study) -> list[Trial]:
    """Returns the trials that have been started and have no result."""
    return [trial for trial in proposed_trials(study) if trial.state.name == "RUNNING"]


def _fail_incomplete(study: Study) -> None:
    """Fails each trial without a run: a kill interrupted its proposal, and it never ran."""
    for trial in study.get_trials(deepcopy=False):
        if not trial.state.is_finished() and RUN not in trial.user_attrs:
            record_result(study, trial, TrialResult(None))


def _distribution(axis: SearchAxis) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    low = axis.low
    high = axis.high
    if low is None or high is None:
        return CategoricalDistribution(axis.values)
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=axis.log, step=int(axis.step or 1))
    return FloatDistribution(low, high, log=axis.log, step=axis.step)


def _make_sampler(settings: SearchSettings, index: int) -> Any:
    """Returns the sampler of the trial with this index."""
    import optuna

    seed = random.Random(f"{settings.seed} {index}").getrandbits(32)
    if settings.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # constant_liar treats the running trials as if their results were bad.
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def trial_results(study: Study) -> dict[str, TrialResult]:
    """Returns the result of each run whose trial has ended, by run directory."""
    results = {}
    for trial in proposed_trials(study):
        run = trial.user_attrs[RUN]
        if run and trial.state.is_finished():
            results[run] = TrialResult(trial.value, trial.user_attrs.get(ERROR, ""))
    return results


def run_error(run: str, objective: str) -> str:
    """Returns why a run that has ended has no value of the objective."""
    result = _read_result(run)
    if result.get("state") == "finished":
        return missing_objective(result, objective)
    return result.get("error") or "the run did not finish"


def _read_result(run: str) -> dict[str, Any]:
    """Returns result.json of a run; {} if there is none or it cannot be read."""
    try:
        return read_result(Path(run))
    except VggexpError:
        return {}


def record_result(study: Study, trial: Trial, result: TrialResult) -> None:
    """Records the result of a trial. A value that is no finite number makes the trial a failure.

    For Optuna a trial that sweep.halving has stopped is pruned, with its value there.
    """
    from optuna.trial import TrialState

    for epoch, score in result.rung_scores.items():  # a stored trial has no method for it
        study._storage.set_trial_intermediate_value(trial._trial_id, epoch, score)
    if result.stopped_at is not None:
        study.tell(trial.number, state=TrialState.PRUNED)
        return
    if isinstance(result.value, int | float) and math.isfinite(result.value):
        study.tell(trial.number, float(result.value))
        return
    if result.error:
        # A stored trial has no method for it.
        study._storage.set_trial_user_attr(trial._trial_id, ERROR, result.error)
    study.tell(trial.number, state=TrialState.FAIL)


def trial_jobs(study: Study, axes: Axes) -> list[SweepJob]:
    """Returns one job for each run of the search; a trial without a run is named `trial-7`."""
    jobs = {}
    for position, trial in enumerate(proposed_trials(study), 1):
        folder = Path(trial.user_attrs[RUN] or f"trial-{position}")
        config = load_config(folder) if (folder / CONFIG).exists() else None
        overrides = trial_overrides(axes, trial.params)
        error = trial.user_attrs.get(ERROR, "")
        scores = trial.intermediate_values
        rung = None
        if BRACKET in trial.user_attrs and trial.user_attrs[RUN]:
            rung = len(scores) + (trial.state.name == "FAIL")  # without a score at its last rung
        jobs[folder] = SweepJob(overrides, folder, config, error, rung, scores)
    return list(jobs.values())


def trial_overrides(axes: Axes, params: Params) -> list[str]:
    """Returns the values of a trial as overrides."""
    overrides = []
    for key, axis in axes.items():
        text = axis.text(params[key])
        overrides.append(f"{key}={text}")
    return overrides


def trial_line(study: Study, trial: Trial, axes: Axes, total: int, objective: str) -> str:
    """Returns the line of a trial; once the trial has ended, with its value and the best value."""
    trials = proposed_trials(study)
    numbers = {}  # as printed: a repeated trial keeps its number
    for position, other in enumerate(trials, 1):
        numbers[other.number] = position
    stored = trials[numbers[trial.number] - 1]
    overrides = "  ".join(trial_overrides(axes, trial.params))
    line = f"trial {numbers[trial.number]} of {total}  {overrides}"
    if not stored.state.is_finished():
        return line
    if stored.state.name == "PRUNED":
        line += f"  {format_metric(stored.value)}  stopped at epoch {stored.last_step}"
    elif stored.value is None:
        line += f"  failed: {stored.user_attrs.get(ERROR, 'no value')}"
    else:
        line += f"  {objective} {format_metric(stored.value)}"
    if any(other.state.name == "COMPLETE" for other in trials):
        best = study.best_trial
        line += f"  best {format_metric(best.value)} (trial {numbers[best.number]})"
    return line
