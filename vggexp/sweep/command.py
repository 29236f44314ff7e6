import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from vggexp.config import compose, run_id
from vggexp.errors import ConfigError, ResourceError, SweepError
from vggexp.runs import jsonl, records
from vggexp.runs.directory import METRICS
from vggexp.sweep import expand
from vggexp.sweep.results import repeat_folders, write_sweep_table
from vggexp.sweep.search_space import SearchPlan
from vggexp.sweep.task import run_hydra
from vggexp.system.locks import lock_run_dir


def run_sweep(command: compose.Command, jobs: list[expand.ComposedJob]) -> int:
    """Runs every job under Hydra's launcher, then tells what the run directories hold. Raises SweepError."""
    names = [run_id.run_name(job.config) for job in jobs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"sweep: {names.count(twice[0])} jobs share the folder {twice[0]}; they are the same run"
        )
    if jobs[0].config.sweep.dry_run:
        from vggexp.sweep.dry_run import dry_run_table

        print("\n".join(dry_run_table([(job.overrides, job.config) for job in jobs])))
        return 0
    folders = [records.run_dir(job.config) for job in jobs]
    folder = (
        Path(jobs[0].config.run.root)
        / "sweeps"
        / run_id.sweep_name([job.overrides for job in jobs])
    )
    typed = [
        word.partition("=")[2]
        for word in command.overrides
        if word.lstrip("+").startswith("hydra.sweep.dir=")
    ]
    folder, left = (Path(typed[-1].strip("'\"")), []) if typed else (folder, [_quoted(folder)])
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"{folder}: cannot be made: {error.strerror} (choose another run.root)"
        ) from error
    code = run_hydra(command, *left)
    if code:
        return code
    overrides = [job.overrides for job in jobs]
    bad = write_sweep_table(folders, overrides, jobs[0].config.sweep.objective, folder)
    write_repeats_events(folder, repeat_folders(folders, overrides))
    if bad:
        raise SweepError(
            f"{bad} of {len(jobs)} jobs did not finish; the lines above and {folder} hold the reasons"
        )
    return 0


def write_repeats_events(folder: Path, sets: Mapping[str, Sequence[Path]]) -> None:
    """In TensorBoard, which is a view: the sweep does not fail with it."""
    if not sets:
        return
    from vggexp.sweep.tensorboard import write_means

    try:
        write_means(
            folder,
            {label: [jsonl.read(one / METRICS) for one in many] for label, many in sets.items()},
        )
    except Exception as error:
        print(f"warning: TensorBoard: {error}", file=sys.stderr)


def run_search(command: compose.Command, planned: SearchPlan) -> int:
    """Runs what is left of a search under Hydra's launcher, then tells what its trials hold. Raises SweepError."""
    from vggexp.sweep.study import finished_trials, open_study, trial_runs

    folder = planned.folder
    objective = planned.config.sweep.objective
    with lock_run_dir(folder):
        open_study(
            folder, planned.name, objective
        )  # refuses another search's folder before Hydra starts
        code = run_hydra(command, _quoted(folder))
        if code:
            return code
        study = open_study(folder)
    runs = trial_runs(study, planned.axes)
    write_sweep_table([Path(run) for run in runs], list(runs.values()), objective, folder)
    trials = finished_trials(study)
    if bad := sum(trial.value is None for trial in trials):
        raise SweepError(
            f"{bad} of {len(trials)} trials failed; their folders hold the reason in result.json"
        )
    return 0


def _quoted(folder: Path) -> str:
    escaped = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return f"hydra.sweep.dir='{escaped}'"
