"""Keeps the Optuna study of a search in one file, `study.log`, that a kill does not harm."""

import math
import random
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vggexp.errors import CheckpointError, ResourceError
from vggexp.runs.repeats import higher_is_better
from vggexp.sweep.search_space import SearchAxis, SearchSettings
from vggexp.system.files import open_no_follow, read_file

STUDY = "study.log"
MAX_STUDY_BYTES = 1 << 28
# The attribute of a trial that is set last: its run directory, or "" if its values do not fit
# together.
RUN = "run"

Study = Any  # optuna.Study; Optuna is imported only for a search
Trial = Any  # optuna.Trial or optuna.trial.FrozenTrial
Axes = Mapping[str, SearchAxis]  # by key
Params = Mapping[str, Any]  # the values of a trial by key


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
    """Returns the trials that have all their values; they may be running, or have ended."""
    trials = study.get_trials(deepcopy=False)
    return [trial for trial in trials if RUN in trial.user_attrs]


def next_trials(
    study: Study,
    axes: Axes,
    settings: SearchSettings,
    run_of: Callable[[Params], str],
) -> list[Trial]:
    """Returns the trials to run next, at most `settings.parallel`; empty at the end of the search.

    Trials that a kill interrupted come first. Each new trial has a new sampler, seeded by the
    trial's number, so a search that was interrupted proposes what it would have proposed.

    Args:
        study: the study.
        axes: the axes by key.
        settings: the settings of the search.
        run_of: returns the run directory for the values of a trial, or "".
    """
    _fail_incomplete(study)
    distributions = {}
    for key, axis in axes.items():
        distributions[key] = _distribution(axis)
    count = len(proposed_trials(study))
    free = (settings.parallel or 1) - len(_running_trials(study))
    end = min(settings.n_trials, count + free)
    for index in range(count, end):
        study.sampler = _make_sampler(settings, index)
        trial = study.ask(distributions)
        run = run_of(trial.params)
        trial.set_user_attr(RUN, run)
    return _running_trials(study)


def _running_trials(study: Study) -> list[Trial]:
    """Returns the proposed trials that have no result."""
    trials = proposed_trials(study)
    return [trial for trial in trials if not trial.state.is_finished()]


def _fail_incomplete(study: Study) -> None:
    """Fails each trial without a run: a kill interrupted its proposal, and it never ran."""
    for trial in study.get_trials(deepcopy=False):
        if not trial.state.is_finished() and RUN not in trial.user_attrs:
            tell(study, trial, None)


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


def finished_values(study: Study) -> dict[str, float | None]:
    """Returns the objective of each run whose trial has ended; None if the trial failed."""
    values = {}
    for trial in proposed_trials(study):
        if trial.state.is_finished():
            run = trial.user_attrs[RUN]
            values[run] = trial.value
    return values


def tell(study: Study, trial: Trial, value: Any) -> None:
    """Records the result of a trial. A value that is no finite number makes the trial a failure."""
    from optuna.trial import TrialState

    if isinstance(value, int | float) and math.isfinite(value):
        study.tell(trial.number, float(value))
    else:
        study.tell(trial.number, state=TrialState.FAIL)


def trial_runs(study: Study, axes: Axes) -> dict[str, list[str]]:
    """Returns the overrides of each trial by run directory; `trial-7` if there was no run."""
    runs = {}
    for trial in proposed_trials(study):
        run = trial.user_attrs[RUN]
        if not run:
            run = f"trial-{trial.number + 1}"
        runs[run] = trial_overrides(axes, trial.params)
    return runs


def trial_overrides(axes: Axes, params: Params) -> list[str]:
    """Returns the values of a trial as overrides."""
    overrides = []
    for key, axis in axes.items():
        text = axis.text(params[key])
        overrides.append(f"{key}={text}")
    return overrides


def trial_line(study: Study, trial: Trial, axes: Axes, total: int) -> str:
    """Returns the line of a trial; once the trial has ended, with its value and the best value."""
    number = trial.number + 1
    overrides = "  ".join(trial_overrides(axes, trial.params))
    line = f"trial {number} of {total}  {overrides}"
    trials = proposed_trials(study)
    stored = next(other for other in trials if other.number == trial.number)
    if not stored.state.is_finished():
        return line
    if stored.value is None:
        line += "  failed"
    else:
        line += f"  {stored.value:.4f}"
    if any(other.value is not None for other in trials):
        best = study.best_trial
        line += f"  best {best.value:.4f} (trial {best.number + 1})"
    return line
