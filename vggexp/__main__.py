"""python -m vggexp: checks the command, then trains one run or a sweep of them."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from vggexp import process, runs, slurm
from vggexp.config import compose, identity
from vggexp.config.schema import Config
from vggexp.config.search import Search
from vggexp.errors import ConfigError, ResourceError, SweepError, VggexpError
from vggexp.place import place
from vggexp.rundir import METRICS, RESULT, claimed, result_of
from vggexp.signals import stopping, taken
from vggexp.sinks import jsonl
from vggexp.sinks.console import error_line, failed
from vggexp.table import repeats, sweep_table

SHARING = ("basic", "joblib", "submitit_local")  # launchers of which a job that dies takes more with it


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code; an expected end prints one line on stderr, a bug its traceback."""
    try:
        return _command(compose.parse(sys.argv[1:] if argv is None else argv))
    except VggexpError as error:
        return failed(error)
    except KeyboardInterrupt:
        taken()
        print("vggexp: stopped at once", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _command(command: compose.Command) -> int:
    if any(getattr(command.arguments, flag) for flag in compose.HYDRA_FLAGS):
        if command.arguments.cfg:
            compose.composes(command)
        return _hydra(command)
    loaded = compose.load(command)
    if place().size > 1:
        _check_ranks(loaded, place().size)
        return _hydra(command)
    if isinstance(loaded, list):
        return _sweep(command, loaded)
    if isinstance(loaded, Search):
        return _search(command, loaded)
    if loaded is not None and told(loaded) is not None:
        return 0
    return _hydra(command)


def _check_ranks(loaded: object, size: int) -> None:
    """Raises ConfigError where others have started several ranks of what is no single run, or of a run of fewer."""
    if not isinstance(loaded, Config):
        raise ConfigError(
            f"-m: each of the {size} ranks would run the whole sweep; start it once, without torchrun or srun, "
            f"with device.processes={size}"
        )
    if loaded.device.processes not in (None, size):
        raise ConfigError(f"device.processes={loaded.device.processes}: {size} have been started; leave it out")


def _hydra(command: compose.Command, *overrides: str) -> int:
    """Enters hydra.main with flags and overrides in the order that its parser wants."""
    sys.argv = [sys.argv[0], *command.flags, *command.overrides, *overrides]
    entry = hydra.main(config_path=compose.conf_dir(), config_name="config", **compose.VERSION_BASE)(task)
    try:
        entry()
    except SystemExit as end:
        if isinstance(end.code, VggexpError):  # of a launcher: it passes through Hydra as it is
            raise end.code from None
        return end.code if isinstance(end.code, int) else 1
    return 0


def task(node: DictConfig) -> float | None:
    """What Hydra runs for each job. Where jobs share a process, one that fails is told and not raised."""
    job = HydraConfig.get()
    many, launcher = job.mode == RunMode.MULTIRUN, job.runtime.choices.get("hydra/launcher")
    try:
        config = compose.checked(node)  # a search has made it only now
        folder = runs.folder_of(config)
        if many and launcher != "local" and _failed_before(config):
            return None
        if many and launcher in SHARING and runs.finished(config) is None:
            return _alone(folder, config, list(job.overrides.task))
    except VggexpError as error:
        failed(error)
        code = error.exit_code
    else:
        code = _performed(config, list(job.overrides.task))
        if code == 0:
            return objective(folder, config)
        if many and code == 128 + signal.SIGTERM:
            slurm.requeue_if_preempted()
    if many and launcher != "local" and code < 128:
        return None
    raise SystemExit(code)


def _performed(config: Config, overrides: list[str]) -> int:
    """Trains in this process; the exit code."""
    try:
        ranks = place().size
        if ranks == 1 and told(config) is not None:
            return 0
        if ranks == 1 and (config.device.processes or 1) > 1:
            from vggexp import ranks as several

            return several.run(config, overrides)
        from vggexp.run import run  # imports torch, once there is something to train

        run(config, overrides)
    except VggexpError as error:
        code = failed(error)
        return code if error.signal is None else 128 + error.signal
    except Exception:
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            raise
        traceback.print_exc()  # a bug ends its own job only, and is not kept quiet
        return 1
    return 0


def _alone(folder: Path, config: Config, overrides: list[str]) -> float | None:
    """Trains in a process of its own, which may end as it will; a stop signal is passed on to it."""
    import vggexp.run  # noqa: F401  (once, for all jobs of this process)

    with stopping() as stop:
        pid, passed_on = process.start(lambda: _performed(config, overrides)), False
        try:
            while (code := process.ended(pid)) is None:
                if stop.signal and not passed_on:
                    os.kill(pid, stop.signal)
                    passed_on = True
                time.sleep(0.05)
        except BaseException:  # a second Ctrl-C: no job outlives its sweep
            os.kill(pid, signal.SIGINT)
            os.waitpid(pid, 0)
            raise
    if code < 0:
        print(error_line(f"{identity.run_name(config)}: killed by {process.signal_name(code)}"), file=sys.stderr)
    if code >= 128:
        raise SystemExit(code)
    return objective(folder, config) if code == 0 else None


def objective(folder: Path, config: Config) -> float | None:
    """What a sweeper is told of a run that has finished."""
    return result_of(folder).get(config.sweep.objective)


def _failed_before(config: Config) -> bool:
    folder = runs.folder_of(config)
    if result_of(folder).get("state") != "failed" or config.sweep.retry_failed:
        return False
    print(f"failed before: {folder} ({RESULT} has the reason; sweep.retry_failed=true tries again)")
    return True


def told(config: Config) -> dict[str, Any] | None:
    """Says so where this very run is finished already; its result."""
    result = runs.finished(config)
    if result is not None:
        print(runs.finished_line(config, result))
    return result


def _sweep(command: compose.Command, jobs: list[compose.Job]) -> int:
    """Runs every job under Hydra's launcher, then tells what the run directories hold. Raises SweepError."""
    names = [identity.run_name(job.config) for job in jobs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"sweep: {names.count(twice[0])} jobs share the folder {twice[0]}; they are the same run")
    if jobs[0].config.sweep.dry_run:
        from vggexp.forecast import forecast

        print("\n".join(forecast([(job.overrides, job.config) for job in jobs])))
        return 0
    folders = [runs.folder_of(job.config) for job in jobs]
    folder = Path(jobs[0].config.run.root) / "sweeps" / identity.sweep_name([job.overrides for job in jobs])
    typed = [word.partition("=")[2] for word in command.overrides if word.lstrip("+").startswith("hydra.sweep.dir=")]
    folder, left = (Path(typed[-1].strip("'\"")), []) if typed else (folder, [_quoted(folder)])
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{folder}: cannot be made: {error.strerror} (choose another run.root)") from error
    code = _hydra(command, *left)
    if code:
        return code
    overrides = [job.overrides for job in jobs]
    bad = sweep_table(folders, overrides, jobs[0].config.sweep.objective, folder)
    show_repeats(folder, repeats(folders, overrides))
    if bad:
        raise SweepError(f"{bad} of {len(jobs)} jobs did not finish; the lines above and {folder} hold the reasons")
    return 0


def show_repeats(folder: Path, sets: Mapping[str, Sequence[Path]]) -> None:
    """In TensorBoard, which is a view: the sweep does not fail with it."""
    if not sets:
        return
    from vggexp.sinks.means import write_means

    try:
        write_means(folder, {label: [jsonl.read(one / METRICS) for one in many] for label, many in sets.items()})
    except Exception as error:
        print(f"warning: TensorBoard: {error}", file=sys.stderr)


def _search(command: compose.Command, planned: Search) -> int:
    """Runs what is left of a search under Hydra's launcher, then tells what its trials hold. Raises SweepError."""
    from vggexp import search

    folder, objective = planned.folder, planned.config.sweep.objective
    with claimed(folder):
        search.opened(folder, planned.name, objective)  # refuses another search's folder before Hydra starts
        code = _hydra(command, _quoted(folder))
        if code:
            return code
        study = search.opened(folder)
    runs = search.runs(study, planned.axes)
    sweep_table([Path(run) for run in runs], list(runs.values()), objective, folder)
    trials = search.trials(study)
    if bad := sum(trial.value is None for trial in trials):
        raise SweepError(f"{bad} of {len(trials)} trials failed; their folders hold the reason in result.json")
    return 0


def _quoted(folder: Path) -> str:
    escaped = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return f"hydra.sweep.dir='{escaped}'"


if __name__ == "__main__":
    sys.exit(main())
