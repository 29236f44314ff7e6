"""Grid sweeper, hydra/sweeper=grid (the default): all combinations of values, with any launcher."""

from collections.abc import Sequence
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

    The jobs, with pairs, repeats and sweep.where, are in `configs` of the task, which is a
    `vggexp.sweep.task.HydraTask`.
    """

    def __init__(self, params: dict[str, Any]):
        self.params = params
        self.launcher: Launcher | None = None
        self.hydra_context: HydraContext | None = None  # for validate_batch_is_legal
        self.task: Any = None
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

    def sweep(self, arguments: list[str]) -> Sequence[Any] | None:
        """Launches all jobs. `arguments` are the overrides that made the jobs."""
        from hydra_plugins import vggexp_slurm
        from vggexp.system.files import atomic_write, make_dir

        assert self.launcher is not None
        assert self.config is not None
        folder = Path(self.config.hydra.sweep.dir)
        make_dir(folder)
        text = OmegaConf.to_yaml(self.config)
        atomic_write(folder / "multirun.yaml", text.encode())  # as Hydra's own sweeper does
        overrides = [list(job) for job in self.task.configs]
        self.validate_batch_is_legal(overrides)
        if vggexp_slurm.is_slurm(self.launcher):
            vggexp_slurm.launch_missing(self.launcher, self.task.configs)
            return None
        return vggexp_slurm.launch(self.launcher, overrides)
