"""Search, hydra/sweeper=optuna: Optuna proposes the values of each trial from earlier results."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


@dataclass
class OptunaSweeperConf:
    _target_: str = "hydra_plugins.vggexp_optuna_sweeper.OptunaSweeper"
    n_trials: Any = 20  # of the whole search, however often it is continued
    sampler: Any = "tpe"  # random; or tpe: ten random trials, then trials close to good trials
    seed: Any = 0  # of the sampler
    parallel: Any = None  # trials at once; null: the launcher's jobs, with sweep.halving=K K*K
    params: dict[str, Any] = field(default_factory=dict)  # axes of a sweep file


ConfigStore.instance().store(
    group="hydra/sweeper", name="optuna", node=OptunaSweeperConf, provider="vggexp"
)


class OptunaSweeper(Sweeper):
    """Proposes and launches trials until the search has its number of trials."""

    def __init__(self, **_: Any):
        self.launcher: Launcher | None = None
        self.hydra_context: HydraContext | None = None
        self.task: Any = None  # vggexp.sweep.task.HydraTask
        self.config: DictConfig | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context = hydra_context
        self.task = task_function
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Runs the search.

        A stop signal ends the search by SystemExit. A continued search runs the trials again that
        were running then.
        """
        from vggexp.errors import ResourceError, VggexpError
        from vggexp.formatting import error_line

        try:
            self._search(arguments)
        except OSError as error:
            text = error_line(f"search: {error} (the same command continues it)")
            print(text, file=sys.stderr, flush=True)
            raise SystemExit(ResourceError.exit_code) from error
        except VggexpError as error:  # such as data that has gone; passes through Hydra unchanged
            raise SystemExit(error) from error

    def _search(self, arguments: list[str]) -> None:
        from vggexp.config.hydra_safety import resolve_section
        from vggexp.config.overrides import parse_overrides
        from vggexp.config.parse import ErrorList
        from vggexp.loggers.console import print_text
        from vggexp.sweep.grid import job_overrides
        from vggexp.sweep.search_space import search_settings, search_space
        from vggexp.sweep.study import (
            ERROR,
            RUN,
            TrialResult,
            next_trials,
            open_study,
            record_result,
            repeat_failed_trials,
            trial_line,
        )
        from vggexp.system.files import atomic_write

        assert self.hydra_context is not None
        assert self.config is not None
        hydra = self.config.hydra
        folder = Path(hydra.sweep.dir)
        text = OmegaConf.to_yaml(self.config)
        atomic_write(folder / "multirun.yaml", text.encode())  # as Hydra's own sweeper does
        overrides, _ = parse_overrides(arguments)
        params = resolve_section(self.config, "hydra.sweeper.params")
        self.space = search_space(job_overrides(overrides, params))
        axes = self.space.axes
        sweep = self.task.sweep
        settings = search_settings(hydra.sweeper, ErrorList())
        study = open_study(folder)
        repeat_failed_trials(study, sweep.objective, sweep.retry_failed)
        next_batch = partial(
            next_trials, study, axes, settings, self._run_dir, sweep.halving is not None
        )
        launch = self._launch if sweep.halving is None else self._launch_bracket
        trials = next_batch()
        while trials:
            results = launch(study, trials, settings.n_trials)
            for trial in trials:
                if trial.state.is_finished():  # before a kill
                    continue
                error = trial.user_attrs.get(ERROR, "")  # of values that do not fit together
                result = results.get(trial.user_attrs[RUN], TrialResult(None, error))
                record_result(study, trial, result)
                print_text(trial_line(study, trial, axes, settings.n_trials, sweep.objective))
            trials = next_batch()

    def _launch(self, study: Any, trials: list[Any], total: int) -> dict[str, Any]:
        """Launches the runs of trials; a run that several trials share is launched only once.

        Returns:
            The result of every run of the search so far, by run directory.
        """
        from hydra_plugins import vggexp_slurm
        from vggexp.loggers.console import print_text
        from vggexp.sweep.study import (
            RUN,
            TrialResult,
            run_error,
            trial_line,
            trial_results,
        )

        assert self.launcher is not None
        assert self.config is not None
        objective = self.config.sweep.objective
        results = trial_results(study)
        jobs = {}
        for trial in trials:
            run = trial.user_attrs[RUN]
            if run and run not in results:
                jobs[run] = trial
        for trial in jobs.values():
            print_text(trial_line(study, trial, self.space.axes, total, objective))
        if not jobs:
            return results
        overrides = [self._overrides(trial.params) for trial in jobs.values()]
        job_returns = vggexp_slurm.launch(self.launcher, overrides, len(results))
        for run, job, job_return in zip(jobs, overrides, job_returns, strict=True):
            completed = job_return.status == JobStatus.COMPLETED
            value = job_return.return_value if completed else None
            error = ""
            if value is None:
                error = self.task.errors.get(tuple(job)) or run_error(run, objective)
            results[run] = TrialResult(value, error)
        return results

    def _launch_bracket(self, study: Any, trials: list[Any], total: int) -> dict[str, Any]:
        """Launches the runs of a bracket, rung by rung. See `_launch`.

        Raises:
            SystemExit: with a SweepError, if a run was interrupted: nothing can be decided.
        """
        from hydra_plugins import vggexp_slurm
        from vggexp.errors import SweepError
        from vggexp.loggers.console import print_text
        from vggexp.sweep.halving import has_work, run_rungs, undecided_line
        from vggexp.sweep.study import RUN, trial_line

        jobs = {}
        runs: dict[tuple[str, ...], str] = {}
        for trial in trials:
            run = trial.user_attrs[RUN]
            if run and run not in runs.values():
                job = tuple(self._overrides(trial.params))
                jobs[job] = self._config(trial.params)
                runs[job] = run
                line = trial_line(study, trial, self.space.axes, total, self.task.sweep.objective)
                print_text(line)
        rungs = []
        launched = 0
        for rung in run_rungs(jobs, self.task.sweep) if jobs else ():
            rungs.append(rung)
            print_text(rung.line())
            if has_work(rung):
                self.task.configs = rung.launched_jobs()
                overrides = [list(job) for job in self.task.configs]
                vggexp_slurm.launch(self.launcher, overrides, launched)
                launched += len(overrides)
            if line := undecided_line(rung):
                raise SystemExit(SweepError(line))
        return {run: self._bracket_result(job, run, rungs) for job, run in runs.items()}

    def _bracket_result(self, job: Any, run: str, rungs: Sequence[Any]) -> Any:
        """Returns the result of a run by the rungs that it has entered."""
        from vggexp.sweep.halving import launched_job, run_score, score_at
        from vggexp.sweep.study import TrialResult, run_error

        objective = self.task.sweep.objective
        entered = [rung for rung in rungs if job in rung.jobs]
        rung_scores = {}
        for rung in entered:
            score = score_at(rung.jobs[job], rung.epochs, objective)
            if score is not None:
                rung_scores[rung.epochs] = score
        last = entered[-1]
        config = last.jobs[job]
        value = run_score(config, objective)
        if value is None:
            error = self.task.errors.get(launched_job(job, config)) or run_error(run, objective)
            return TrialResult(None, error, rung_scores=rung_scores)
        stopped_at = None if config.run.until is None else last.epochs
        return TrialResult(value, "", stopped_at, rung_scores)

    def _overrides(self, params: Mapping[str, Any]) -> list[str]:
        from vggexp.sweep.study import trial_overrides

        return [*self.space.fixed, *trial_overrides(self.space.axes, params)]

    def _run_dir(self, params: Mapping[str, Any]) -> str:
        """Returns the run directory for values. Raises ConfigError if they do not fit together."""
        from vggexp.runs import records

        return str(records.run_dir(self._config(params)))

    def _config(self, params: Mapping[str, Any]) -> Any:
        """Returns the configuration for values. Raises ConfigError if they do not fit together."""
        from vggexp.config.diagnostics import compose_error_line
        from vggexp.errors import ConfigError
        from vggexp.sweep.expand import validate_node

        assert self.hydra_context is not None
        assert self.config is not None
        overrides = self._overrides(params)
        try:
            node = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
            return validate_node(node)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(compose_error_line(error)) from error
