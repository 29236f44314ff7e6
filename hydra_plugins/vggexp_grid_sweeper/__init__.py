"""Grid sweeper, hydra/sweeper=grid (the default): all combinations of values, with any launcher."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


@dataclass
class GridSweeperConf:
    _target_: str = "hydra_plugins.vggexp_grid_sweeper.GridSweeper"
    params: dict[str, Any] = field(default_factory=dict)  # axes of a sweep file


ConfigStore.instance().store(
    group="hydra/sweeper", name="grid", node=GridSweeperConf, provider="vggexp"
)


class GridSweeper(Sweeper):
    """Launches the jobs that `vggexp.sweep.expand` has checked.

    Hydra's own sweepers compose every job once more before the first starts, 0.07 s each.

    The jobs, with pairs, repeats and sweep.where, are in `configs` of the task, which is a
    `vggexp.sweep.task.HydraTask`.
    """

    def __init__(self, params: dict[str, Any]):
        self.params = params
        self.launcher: Launcher | None = None
        self.task: Any = None
        self.config: DictConfig | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.task = task_function
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Launches all jobs. `arguments` are the overrides that made the jobs."""
        from vggexp.system.files import atomic_write, make_dir

        assert self.config is not None
        folder = Path(self.config.hydra.sweep.dir)
        make_dir(folder)
        text = OmegaConf.to_yaml(self.config)
        atomic_write(folder / "multirun.yaml", text.encode())  # as Hydra's own sweeper does
        if self.task.sweep.halving is None:
            self._launch()
        else:
            self._launch_rungs()

    def _launch_rungs(self) -> None:
        """Launches the jobs of each rung of sweep.halving that still have to train."""
        from vggexp.loggers.console import print_text
        from vggexp.sweep.halving import has_work, run_rungs, undecided_line

        launched = 0
        for rung in run_rungs(self.task.configs, self.task.sweep):
            if not has_work(rung):
                print_text(f"{rung.line()}  (done before)")
                continue
            print_text(rung.line())
            self.task.configs = rung.launched_jobs()
            self._launch(launched)
            launched += len(rung.jobs)
            if line := undecided_line(rung):
                print_text(line)

    def _launch(self, first: int = 0) -> None:
        """Launches the task's jobs and waits for them; `first` is the index of the first job."""
        from hydra_plugins import vggexp_slurm

        if vggexp_slurm.is_slurm(self.launcher):
            vggexp_slurm.launch_missing(self.launcher, self.task.configs)
        else:
            overrides = [list(job) for job in self.task.configs]
            vggexp_slurm.launch(self.launcher, overrides, first)
