"""The study of a search: asked for trials and told their results, in one file that a kill does not harm."""

import math
import random
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vggexp.errors import CheckpointError, ResourceError
from vggexp.runs.repeats import higher_is_better
from vggexp.sweep.search_space import SearchAxis, SearchSettings

STUDY = "study.log"
RUN = "run"  # attribute of a trial, set last: the folder of its run, or nothing where its values do not fit together

Study = Any  # Optuna's, which is imported only where there is a search
Trial = Any


class NoOpLock:
    """In place of Optuna's lock file, which outlives a kill; the folder is claimed by `rundir.claimed`."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


def open_study(folder: Path, name: str | None = None, objective: str = "") -> Study:
    """The study in the folder. name, objective: makes it where there is none. Raises CheckpointError, ResourceError."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = folder / STUDY
    try:
        storage = _storage(path)
        there = optuna.get_all_study_names(storage)
        if not there:
            ways = optuna.study.StudyDirection
            direction = ways.MAXIMIZE if higher_is_better(objective) else ways.MINIMIZE
            return optuna.create_study(study_name=name, storage=storage, direction=direction)
        if name not in (None, *there):
            raise CheckpointError(
                f"{folder}: holds the search {there[0]}, not {name}; choose another hydra.sweep.dir"
            )
        return optuna.load_study(study_name=there[0], storage=storage)
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written: {error.strerror}") from error
    except CheckpointError:
        raise
    except Exception as error:  # Optuna does not check what it reads, so it may raise anything
        raise CheckpointError(f"{path}: not a study: {type(error).__name__}: {error}") from error


def _storage(path: Path) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    _truncate_partial_line(path)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=NoOpLock()))  # type: ignore[arg-type]


def _truncate_partial_line(path: Path) -> None:
    """Takes away the line that a kill or a full disk has left unfinished, and with which no other can be written."""
    content = path.read_bytes() if path.exists() else b""
    if not content.endswith(b"\n"):
        with open(path, "ab") as file:
            file.truncate(content.rfind(b"\n") + 1)


def finished_trials(study: Study) -> list[Trial]:
    """Those that got all their values."""
    return [trial for trial in study.get_trials(deepcopy=False) if RUN in trial.user_attrs]


def next_trials(
    study: Study,
    axes: Mapping[str, SearchAxis],
    settings: SearchSettings,
    run_of: Callable[[Mapping[str, Any]], str],
) -> list[Trial]:
    """The next trials to run at once: those that a kill has interrupted, then new ones. Empty at the end.

    The sampler is made anew for each, seeded by its place, so a search that was interrupted asks what it would have
    asked. run_of: the folder for the values of a trial.
    """
    _fail_incomplete(study)
    space = {key: _distribution(axis) for key, axis in axes.items()}
    whole = finished_trials(study)
    left = sum(not trial.state.is_finished() for trial in whole)
    for place in range(
        len(whole), min(settings.n_trials, len(whole) + (settings.parallel or 1) - left)
    ):
        study.sampler = _sampler(settings, place)
        trial = study.ask(space)
        trial.set_user_attr(RUN, run_of(trial.params))
    return [trial for trial in finished_trials(study) if not trial.state.is_finished()]


def _fail_incomplete(study: Study) -> None:
    """A kill between two values of a trial leaves it without the others. It never ran, and is asked for anew."""
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


def _sampler(settings: SearchSettings, place: int) -> Any:
    import optuna

    seed = random.Random(f"{settings.seed} {place}").getrandbits(32)
    if settings.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed, constant_liar=True
        )  # as if running trials had done badly


def finished_values(study: Study) -> dict[str, float | None]:
    """What the runs of the finished trials came to; None: failed."""
    done = [trial for trial in finished_trials(study) if trial.state.is_finished()]
    return {trial.user_attrs[RUN]: trial.value for trial in done}


def tell(study: Study, trial: Trial, value: Any) -> None:
    """value: what the run came to; none that is a finite number: it failed, and the search goes on."""
    from optuna.trial import TrialState

    good = isinstance(value, int | float) and math.isfinite(value)
    study.tell(
        trial.number, float(value) if good else None, state=None if good else TrialState.FAIL
    )


def trial_runs(study: Study, axes: Mapping[str, SearchAxis]) -> dict[str, list[str]]:
    """The run directories of the search with the overrides of each; `trial-7` where there was nothing to run."""
    named = {
        trial.user_attrs[RUN] or f"trial-{trial.number + 1}": trial
        for trial in finished_trials(study)
    }
    return {run: trial_overrides(axes, trial.params) for run, trial in named.items()}


def trial_overrides(axes: Mapping[str, SearchAxis], params: Mapping[str, Any]) -> list[str]:
    """The values of a trial as overrides."""
    return [f"{key}={axis.text(params[key])}" for key, axis in axes.items()]


def trial_line(study: Study, trial: Trial, axes: Mapping[str, SearchAxis], total: int) -> str:
    """What is said of a trial before it runs, and after it with its value and the best one."""
    said = f"trial {trial.number + 1} of {total}  {'  '.join(trial_overrides(axes, trial.params))}"
    told = next(one for one in finished_trials(study) if one.number == trial.number)
    if not told.state.is_finished():
        return said
    best = [one for one in finished_trials(study) if one.value is not None]
    came = "failed" if told.value is None else f"{told.value:.4f}"
    return f"{said}  {came}" + (
        f"  best {study.best_value:.4f} (trial {study.best_trial.number + 1})" if best else ""
    )
