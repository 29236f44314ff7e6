"""The search: Optuna proposes the values of each trial from the results so far. hydra/sweeper=optuna."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
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
    sampler: Any = "tpe"  # tpe: ten trials at random, then where good ones lie close | random
    seed: Any = 0  # of the sampler
    parallel: Any = (
        None  # trials asked for and launched at once; null: what the launcher runs at a time
    )
    params: dict[str, Any] = field(default_factory=dict)  # axes of a sweep file


ConfigStore.instance().store(
    group="hydra/sweeper", name="optuna", node=OptunaSweeperConf, provider="vggexp"
)


class OptunaSweeper(Sweeper):
    def __init__(self, **_: Any):
        self.launcher: Launcher | None = None
        self.hydra_context: HydraContext | None = None
        self.config: DictConfig | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context = hydra_context
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """A stop signal ends it by SystemExit; what was running then runs again when the search goes on."""
        from vggexp.errors import ResourceError
        from vggexp.formatting import error_line

        try:
            self._search(arguments)
        except OSError as error:
            print(
                error_line(f"search: {error} (the same command continues it)"),
                file=sys.stderr,
                flush=True,
            )
            raise SystemExit(ResourceError.exit_code) from error

    def _search(self, arguments: list[str]) -> None:
        from vggexp.config.parse import ErrorList
        from vggexp.sweep.search_space import search_axes, search_settings
        from vggexp.sweep.study import RUN, next_trials, open_study, tell, trial_line

        assert (
            self.launcher is not None and self.hydra_context is not None and self.config is not None
        )
        hydra = self.config.hydra
        folder = Path(self.config.hydra.sweep.dir)
        OmegaConf.save(self.config, folder / "multirun.yaml")  # as Hydra's own sweeper does
        self.fixed, self.axes = search_axes(
            self.hydra_context.config_loader, arguments, dict(hydra.sweeper.params)
        )
        wanted = search_settings(hydra.sweeper, ErrorList(), hydra.launcher)
        study = open_study(folder)
        while batch := next_trials(study, self.axes, wanted, self._run):
            values = self._launched(study, batch, wanted.n_trials)
            for trial in batch:
                tell(study, trial, values.get(trial.user_attrs[RUN]))
                print(trial_line(study, trial, self.axes, wanted.n_trials), flush=True)

    def _launched(self, study: Any, batch: list[Any], total: int) -> dict[str, Any]:
        """What each run came to. A run that two trials share, or that an earlier one had, is launched once."""
        from hydra_plugins import vggexp_slurm
        from vggexp.sweep.study import RUN, finished_values, trial_line

        assert self.launcher is not None
        known = finished_values(study)
        jobs = {trial.user_attrs[RUN]: trial for trial in batch if trial.user_attrs[RUN]}
        jobs = {run: trial for run, trial in jobs.items() if run not in known}
        for trial in jobs.values():
            print(trial_line(study, trial, self.axes, total), flush=True)
        overrides = [self._overrides(trial.params) for trial in jobs.values()]
        ends = vggexp_slurm.launch(self.launcher, overrides, len(known)) if jobs else []
        return {**known, **{run: _value(end) for run, end in zip(jobs, ends, strict=True)}}

    def _overrides(self, params: Mapping[str, Any]) -> list[str]:
        from vggexp.sweep.study import trial_overrides

        return [*self.fixed, *trial_overrides(self.axes, params)]

    def _run(self, params: Mapping[str, Any]) -> str:
        """The folder of the run that has these values; none where they do not fit together, which is told."""
        from vggexp.config import run_id
        from vggexp.errors import ConfigError
        from vggexp.formatting import error_line
        from vggexp.sweep import expand

        assert self.hydra_context is not None and self.config is not None
        overrides = self._overrides(params)
        try:
            node = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
            config = expand.validate_node(node)
        except (ConfigError, HydraException, OmegaConfBaseException) as error:
            print(error_line(str(error)), file=sys.stderr, flush=True)
            return ""
        return str(Path(config.run.root) / run_id.run_name(config))


def _value(end: JobReturn) -> Any:
    return end.return_value if end.status == JobStatus.COMPLETED else None
