"""Local launcher, hydra/launcher=local: runs several jobs at a time, each in its own process."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, run_job
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


@dataclass
class LocalLauncherConf:
    _target_: str = "hydra_plugins.vggexp_local_launcher.LocalLauncher"
    jobs: Any = "auto"  # jobs at a time; auto: one for each GPU slot, or one for each four cores
    slots_per_gpu: Any = 1  # jobs that share a GPU
    gpus: Any = None  # the devices to use, as CUDA_VISIBLE_DEVICES names them; null: all


ConfigStore.instance().store(
    group="hydra/launcher", name="local", node=LocalLauncherConf, provider="vggexp"
)


class LocalLauncher(Launcher):
    """Runs the jobs of a sweep with `vggexp.sweep.pool`."""

    def __init__(self, jobs: Any, slots_per_gpu: int, gpus: Any):
        self.jobs = jobs
        self.slots_per_gpu = slots_per_gpu
        self.gpus = gpus

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context = hydra_context
        self.task_function: Any = task_function
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Runs jobs and waits for them. A search launches often, from a rising first index."""
        from vggexp.errors import VggexpError
        from vggexp.sweep import pool

        jobs = []
        for index, overrides in enumerate(job_overrides):
            jobs.append(self._make_job(index, overrides))
        if initial_job_idx:
            pool.preload(jobs)
        slots = pool.make_slots(
            self.jobs, self.slots_per_gpu, self.gpus, self.config.device.name, pool.most_ranks(jobs)
        )

        def perform(job: pool.PoolJob) -> int:
            return self._perform(job_overrides[job.index], initial_job_idx + job.index)

        try:
            results = pool.run_pool(jobs, slots, perform, Path(self.config.hydra.sweep.dir))
        except VggexpError as error:
            # Hydra lets no other exception pass unchanged.
            raise SystemExit(error) from error
        job_returns = []
        for overrides, result in zip(job_overrides, results, strict=True):
            if not result.ok:
                self.task_function.errors[tuple(overrides)] = result.error
            job_returns.append(_job_return(overrides, result))
        return job_returns

    def _make_job(self, index: int, overrides: Sequence[str]) -> Any:
        """Returns a pool job with its checked configuration, or with the reason against it."""
        from vggexp.errors import ConfigError
        from vggexp.sweep import pool
        from vggexp.sweep.expand import validate_node

        config = self.task_function.configs.get(tuple(overrides))
        if config is None:  # not a job of a checked grid
            try:
                config = validate_node(self._compose(overrides, 0))
            except ConfigError as error:
                return pool.invalid_job(index, str(error))
        return pool.make_job(index, config)

    def _compose(self, overrides: Sequence[str], number: int) -> DictConfig:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = number
            config.hydra.job.num = number
        return config

    def _perform(self, overrides: Sequence[str], number: int) -> int:
        """Runs in the job's own process. Returns the exit code; a failed task raises SystemExit."""
        job_return = run_job(
            hydra_context=self.hydra_context,
            task_function=self.task_function,
            config=self._compose(overrides, number),
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        if job_return.return_value is None or job_return.status == JobStatus.COMPLETED:
            return 0
        return 1


def _job_return(overrides: Sequence[str], result: Any) -> JobReturn:
    """Returns a pool's result as Hydra's sweepers read it."""
    job_return = JobReturn(overrides=list(overrides))
    if result.ok:
        job_return.status = JobStatus.COMPLETED
        job_return.return_value = result.objective
    else:
        job_return.status = JobStatus.FAILED
        job_return.return_value = RuntimeError(result.error)
    return job_return
