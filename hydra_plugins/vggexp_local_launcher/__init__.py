"""The local launcher: jobs of a sweep as processes of this machine, several at a time. hydra/launcher=local."""

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
    jobs: Any = (
        "auto"  # jobs at a time; auto: one for each slot of the GPUs, or for each four cores
    )
    slots_per_gpu: Any = 1  # jobs that share a GPU
    gpus: Any = None  # the devices to use, as CUDA_VISIBLE_DEVICES names them; null: all


ConfigStore.instance().store(
    group="hydra/launcher", name="local", node=LocalLauncherConf, provider="vggexp"
)


class LocalLauncher(Launcher):
    def __init__(self, jobs: Any, slots_per_gpu: int, gpus: Any):
        self.jobs = jobs
        self.slots_per_gpu = slots_per_gpu
        self.gpus = gpus

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from vggexp.errors import VggexpError
        from vggexp.sweep import pool

        jobs = [
            pool.make_job(number, self._config(overrides))
            for number, overrides in enumerate(job_overrides)
        ]
        if initial_job_idx:  # of a search, which launches often
            pool.preload([job.config for job in jobs])
        slots = pool.make_slots(
            self.jobs, self.slots_per_gpu, self.gpus, self.config.device.name, pool.most_ranks(jobs)
        )
        try:
            ends = pool.run_pool(
                jobs,
                slots,
                lambda job: self._perform(job_overrides[job.number], initial_job_idx + job.number),
                Path(self.config.hydra.sweep.dir),
            )
        except VggexpError as error:
            raise SystemExit(
                error
            ) from error  # unlike any other exception it passes through Hydra as it is
        return [self._returned(*pair) for pair in zip(job_overrides, ends, strict=True)]

    def _config(self, overrides: Sequence[str]) -> Any:
        """The checked configuration of a job, or what is wrong with it."""
        from vggexp.errors import ConfigError
        from vggexp.sweep import expand

        try:
            return expand.CHECKED_JOBS.get(tuple(overrides)) or expand.validate_node(
                self._composed(overrides, 0)
            )
        except ConfigError as error:
            return error

    def _composed(self, overrides: Sequence[str], number: int) -> DictConfig:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        return config

    def _perform(self, overrides: Sequence[str], number: int) -> int:
        """In the job's own process; returns its exit code."""
        end = run_job(
            hydra_context=self.hydra_context,
            task_function=self.task_function,
            config=self._composed(overrides, number),
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        return (
            0 if end.return_value is None or end.status == JobStatus.COMPLETED else 1
        )  # else it raises

    def _returned(self, overrides: Sequence[str], end: Any) -> JobReturn:
        done = JobReturn(
            overrides=list(overrides), status=JobStatus.COMPLETED if end.ok else JobStatus.FAILED
        )
        done.return_value = end.objective if end.ok else RuntimeError(end.error)
        return done
