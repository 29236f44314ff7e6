"""python -m vggexp: checks the command, then trains one run or a sweep of them."""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vggexp.config import compose, identity
from vggexp.config.read import Problems, plain, read
from vggexp.config.rules import broken_rules
from vggexp.config.schema import Config
from vggexp.config.search import Search
from vggexp.errors import CheckpointError, ConfigError, ResourceError, StoppedError, SweepError, VggexpError
from vggexp.rundir import RESULT, claimed, config_of, next_free, result_of
from vggexp.sinks.console import error_line
from vggexp.table import sweep_table


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code; an expected end prints one line on stderr, a bug its traceback."""
    try:
        return _command(compose.parse(sys.argv[1:] if argv is None else argv))
    except VggexpError as error:
        return failed(error)
    except KeyboardInterrupt:
        print("vggexp: stopped at once", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def failed(error: VggexpError) -> int:
    print(f"vggexp: {error}" if isinstance(error, StoppedError) else error_line(str(error)), file=sys.stderr)
    if os.environ.get("VGGEXP_TRACEBACK"):
        raise error
    return error.exit_code


def _command(command: compose.Command) -> int:
    if any(getattr(command.arguments, flag) for flag in compose.HYDRA_FLAGS):
        if command.arguments.cfg:
            compose.composes(command)
        return _hydra(command)
    loaded = compose.load(command)
    if isinstance(loaded, list):
        return _sweep(command, loaded)
    if isinstance(loaded, Search):
        return _search(command, loaded)
    if loaded is not None and _finished(loaded) is not None:
        return 0
    return _hydra(command)


def _hydra(command: compose.Command, *overrides: str) -> int:
    """Enters hydra.main with flags and overrides in the order that its parser wants."""
    sys.argv = [sys.argv[0], *command.flags, *command.overrides, *overrides]
    entry = hydra.main(config_path=compose.conf_dir(), config_name="config", **compose.VERSION_BASE)(task)
    try:
        entry()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def task(node: DictConfig) -> float | None:
    """What Hydra runs for each job. A sweep goes on after a failed job, so there it is told and not raised."""
    problems = Problems()
    config = read(cast(dict[str, Any], OmegaConf.to_container(node, resolve=True)), problems)
    problems += [] if config is None else broken_rules(config)  # a search has made it only now
    if config is None or problems:
        raise SystemExit(failed(ConfigError(*problems)))
    job = HydraConfig.get()
    overrides = list(job.overrides.task)
    try:
        result = _finished(config)
        if result is None:
            from vggexp.run import run  # imports torch, once there is something to train

            result = run(config, overrides)
        return result.get(config.sweep.objective)
    except VggexpError as error:
        code = failed(error)
        if job.mode == RunMode.MULTIRUN and not isinstance(error, StoppedError) and error.signal is None:
            return None
        code = code if error.signal is None else 128 + error.signal
    except Exception:
        if job.mode != RunMode.MULTIRUN:
            raise
        traceback.print_exc()  # a bug ends its own job only, and is not kept quiet
        return None
    raise SystemExit(code)


def _finished(config: Config) -> dict[str, Any] | None:
    """The result of this very run where it is done already. Raises CheckpointError where another run has the name."""
    folder = Path(config.run.root) / identity.run_name(config)
    if config.resume == "never" or not folder.exists():
        return None
    there, here = {}, identity.identity(plain(config))
    if (folder / "config.yaml").exists():
        there = identity.identity(config_of(folder))
        differing = identity.differences(there, here)
        if differing and config.resume != "force":
            told = "; ".join(differing)
            raise CheckpointError(f"{folder}: another configuration ({told}); choose another run.name or resume=force")
    result = result_of(folder)
    if result.get("state") != "finished" or there != here or list(folder.glob("checkpoints/*.tmp")):
        return None  # a temporary file: it was killed while it wrote its last one
    if "test/accuracy" not in result:
        raise CheckpointError(f"{folder / RESULT}: not the result of a run that has finished")
    print(f"already finished: test accuracy {result['test/accuracy']:.4f}  {folder}")
    return result


def _sweep(command: compose.Command, jobs: list[compose.Job]) -> int:
    """Runs every job under Hydra's launcher, then tells what the run directories hold. Raises SweepError."""
    names = [identity.run_name(job.config) for job in jobs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"sweep: {names.count(twice[0])} jobs share the folder {twice[0]}; they are the same run")
    folders = [_folder(job.config, name) for job, name in zip(jobs, names, strict=True)]
    folder = Path(jobs[0].config.run.root) / "sweeps" / identity.sweep_name([job.overrides for job in jobs])
    left = [] if any(word.startswith("hydra.sweep.dir=") for word in command.overrides) else [_quoted(folder)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{folder}: cannot be made: {error.strerror} (choose another run.root)") from error
    code = _hydra(command, *left)
    if code:
        return code
    bad = sweep_table(folders, [job.overrides for job in jobs], jobs[0].config.sweep.objective, folder)
    if bad:
        raise SweepError(f"{bad} of {len(jobs)} jobs did not finish; their folders hold the reason in result.json")
    return 0


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


def _folder(config: Config, name: str) -> Path:
    """Where the job will write."""
    root = Path(config.run.root)
    return root / (next_free(root, name) if config.resume == "never" else name)


def _quoted(folder: Path) -> str:
    escaped = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return f"hydra.sweep.dir='{escaped}'"


if __name__ == "__main__":
    sys.exit(main())
