"""Expands a command into checked configurations: one run, the jobs of a grid, or a search plan.

Every job is checked before the first job starts. Needs no torch.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from hydra.types import RunMode
from omegaconf import DictConfig

from vggexp.config import run_id
from vggexp.config.compose import (
    HYDRA_FLAGS,
    Command,
    Composition,
    build_config,
    compose_or_diagnose,
    exclude_from_labels,
    hydra_session,
    with_typed_values,
)
from vggexp.config.diagnostics import ComposeFn
from vggexp.config.hydra_safety import resolve_section
from vggexp.config.overrides import Override, last_of_each_key, parse_override, parse_overrides
from vggexp.config.parse import ErrorList, convert, parse_section
from vggexp.config.schema import Config, Seed, Sweep
from vggexp.data.image_folder import cached_reads
from vggexp.errors import ConfigError
from vggexp.formatting import format_value
from vggexp.runs.data_source import pin_data
from vggexp.runs.directory import RUN_MODE
from vggexp.runs.init_source import pin_init_weights
from vggexp.sweep.filter import matches
from vggexp.sweep.grid import (
    cached_compose,
    common_overrides,
    endpoint_jobs,
    expand_grid,
    hydra_problems,
    job_overrides,
    unknown_plugin_keys,
    whole_sweep_check,
    without_related,
)
from vggexp.sweep.halving import halving_problems
from vggexp.sweep.lr_range import range_problems
from vggexp.sweep.parallel import planned_jobs_at_a_time
from vggexp.sweep.search_space import (
    SearchPlan,
    is_search,
    plan_search,
    search_problems,
    search_space,
    sweep_folder,
)

MAX_PROBLEMS = 8  # problems of a sweep that are printed; the error text counts the rest
# The keys that only a sweep can follow, and their values in a run.
SWEEP_DEFAULTS = {
    "pairs": (),
    "repeats": 1,
    "where": None,
    "halving": None,
    "halving_start": None,
    "lr_range": None,
    "dry_run": False,
}


class ComposedJob(NamedTuple):
    overrides: list[str]
    config: Config


class GridSweep(NamedTuple):
    """The checked jobs of a grid, in the order in which they start."""

    jobs: list[ComposedJob]
    folder: Path  # of the tables
    label_override: str  # for Hydra, so that its jobs have the same labels
    sweep: Sweep
    jobs_at_a_time: int = 1  # on this host

    def configs(self) -> dict[tuple[str, ...], Config]:
        """Returns the configuration of each job by the job's overrides."""
        return {tuple(job.overrides): job.config for job in self.jobs}


class Outline(NamedTuple):
    """A command as far as it must be composed to know whether it is a sweep."""

    overrides: list[Override]
    problems: list[str]  # of overrides outside Hydra's grammar, and of forbidden overrides
    composition: Composition  # of a single run complete; of a sweep only the keys that define it
    is_sweep: bool


def compose_run(command: Command) -> Config:
    """Returns the checked configuration of a command that is a single run.

    Raises:
        ConfigError: the command has a problem, is a sweep, or has a flag that only Hydra handles.
    """
    if any(getattr(command.arguments, flag) for flag in HYDRA_FLAGS if flag != "help"):
        flag = command.flags[0].partition("=")[0]
        raise ConfigError(f"{flag}: not a flag of this command; python -m vggexp takes it")
    outline = compose_outline(command)
    if outline.is_sweep:
        expand_sweep(command, outline)  # the problems of the sweep are reported first
        raise ConfigError("this command takes a single configuration, not a sweep")
    return run_config(command, outline)


def compose_outline(command: Command) -> Outline:
    """Composes what decides whether a command is a sweep; a file of `sweep` makes it one.

    A single run is composed only once: the outline then holds its complete composition.
    """
    with hydra_session(command) as compose_fn:
        overrides, problems = parse_overrides(command.overrides)
        is_multirun = command.arguments.multirun
        if is_multirun or any(override.is_sweep for override in overrides):
            composition = compose_or_diagnose(_sweep_defining(overrides), compose_fn)
            if is_multirun and _mode(composition) == RunMode.RUN:
                problem = "hydra.mode=RUN: does not go with -m; leave one of them out"
                problems.extend(with_typed_values([problem], overrides))
            if is_multirun or _sets_multirun(composition):
                return Outline(overrides, problems, composition, is_sweep=True)
        composition = compose_or_diagnose(overrides, compose_fn)  # names each list of values
        return Outline(overrides, problems, composition, _sets_multirun(composition))


def _sets_multirun(composition: Composition) -> bool:
    return _mode(composition) == RunMode.MULTIRUN


def _mode(composition: Composition) -> RunMode | None:
    """Returns the mode that the command or a file sets; None if only the flag -m decides."""
    node = composition.node
    mode: RunMode | None = None if node is None else resolve_section(node, "hydra.mode")
    return mode


def _sweep_defining(overrides: Sequence[Override]) -> list[Override]:
    """Returns the overrides that define a sweep; other keys may fit only some of its jobs."""
    chosen = []
    for override in last_of_each_key(overrides):
        is_own = "." not in override.key or override.key.startswith(("sweep.", "run."))
        if (is_own or override.is_hydra) and not override.is_sweep:
            chosen.append(override)
    return chosen


def first_words(command: Command, outline: Outline) -> list[str]:
    """Returns what makes the overrides of a run the command of that one run.

    These are the flags and the override that choose files, and `hydra.mode=RUN` if a file or the
    command sets a mode.
    """
    words = command.file_flags
    words += [override.text for override in outline.overrides if override.key == "hydra.searchpath"]
    return words if _mode(outline.composition) is None else [*words, RUN_MODE]


def run_config(command: Command, outline: Outline) -> Config:
    """Returns the checked configuration of a single run. Raises ConfigError with every problem."""
    problems = [*outline.problems, *outline.composition.problems]
    composition = replace(outline.composition, problems=problems)
    config = pin_init_weights(build_config(composition, outline.overrides))
    typed = {override.key for override in outline.overrides}
    # A run may take the settings of a file that makes a sweep.
    is_run = _mode(outline.composition) == RunMode.RUN
    _reject_sweep_keys(config.sweep, typed if is_run else None)
    return config


def _reject_sweep_keys(sweep: Sweep, typed: Collection[str] | None) -> None:
    """Raises ConfigError if a single run has a key that only a sweep can follow.

    Args:
        typed: the keys of the command, if only these are to be checked.
    """
    for key, value in sweep_keys(sweep).items():
        if typed is None or f"sweep.{key}" in typed:
            raise ConfigError(f"sweep.{key}={format_value(value)}: needs -m (a sweep)")


def sweep_keys(sweep: Sweep) -> dict[str, Any]:
    """Returns the keys and values of the section `sweep` that only a sweep can follow."""
    keys = {}
    for key, default in SWEEP_DEFAULTS.items():
        value = getattr(sweep, key)
        if value and value != default:
            keys[key] = value
    return keys


def check_command(command: Command) -> None:
    """Raises ConfigError with every problem of a run, or of a sweep with the jobs that have it."""
    outline = compose_outline(command)
    if outline.is_sweep:
        expand_sweep(command, outline)
    else:
        run_config(command, outline)


def validate_node(node: DictConfig, hydra: Any = None) -> Config:
    """Parses and validates a job as Hydra passes it to its launchers and its task.

    Args:
        node: the configuration of the job.
        hydra: Hydra's own keys, if they are not in the node.

    Raises:
        ConfigError: with every problem of the configuration.
    """
    overrides = [*map(parse_override, (hydra or node.hydra).overrides.task)]
    return pin_data(pin_init_weights(build_config(Composition(node), overrides, hydra)))


def expand_sweep(command: Command, outline: Outline) -> GridSweep | SearchPlan:
    """Expands a command that is a sweep, and checks every job.

    A search makes its jobs while it runs. Its choices and the ends of its axes are checked.

    Raises:
        ConfigError: with every problem; names the first job that has it, unless all jobs have it.
    """
    node = outline.composition.node
    if node is None or outline.problems:
        problems = [*outline.problems, *outline.composition.problems]
        raise ConfigError(*(problems or [outline.composition.refusal]))
    params = resolve_section(node, "hydra.sweeper").get("params") or {}
    if not isinstance(params, dict):
        raise ConfigError(f"hydra.sweeper.params={format_value(params)}: must be keys and values")
    overrides = job_overrides(outline.overrides, params)
    with hydra_session(command) as compose_fn:
        sweep = _sweep_section(node, outline.overrides)
        if not outline.composition.problems:  # else perhaps not the launcher of the command
            _reject_unknown_plugin_keys(node)
        axes = search_space(overrides).axes if is_search(node) else {}
        if axes:
            combinations = endpoint_jobs(overrides, sweep)
        else:
            seed = _first_seed(node, outline.overrides) if sweep.repeats > 1 else 0
            combinations = expand_grid(overrides, sweep, seed)
        common = common_overrides(combinations)
        common_keys = {parse_override(text).key for text in common}
        label_override = exclude_from_labels(common_keys - {"data"})  # as a run alone is called
        hydra_overrides = [override for override in outline.overrides if override.is_hydra]
        hydra_overrides.append(parse_override(label_override))
        check_files = None
        if outline.composition.problems:  # perhaps of these keys; the others are still checked
            hydra_overrides = []
        else:
            check_files = whole_sweep_check(node, outline.overrides)
        first_applied = without_related(common, combinations)
        compose_job = cached_compose(compose_fn, hydra_overrides, first_applied, check_files)
        with cached_reads():
            jobs = _check_jobs(combinations, compose_job, outline.composition.problems, not axes)
    if sweep.where is not None:
        jobs = [job for job in jobs if matches(sweep.where, job.config)]
        if not jobs:
            raise ConfigError(
                f"sweep.where={sweep.where}: holds for none of {len(combinations)} jobs"
            )
    hashes = _distinct_hashes(jobs)
    configs = [job.config for job in jobs]
    if problems := [*halving_problems(sweep, configs), *range_problems(sweep, configs)]:
        raise ConfigError(*problems)
    if axes:
        return plan_search(node, axes, configs, label_override)
    name = run_id.sweep_name([job.overrides for job in jobs], configs, hashes)
    return GridSweep(
        jobs=jobs,
        folder=sweep_folder(node, configs[0], name),
        label_override=label_override,
        sweep=sweep,
        jobs_at_a_time=planned_jobs_at_a_time(node, configs[0]),
    )


def _distinct_hashes(jobs: Sequence[ComposedJob]) -> list[str]:
    """Returns the hash of each job's run.

    Raises:
        ConfigError: two jobs would share a run directory.
    """
    hashes = [run_id.run_hash(job.config) for job in jobs]
    first: dict[str, ComposedJob] = {}
    for job, run_hash in zip(jobs, hashes, strict=True):
        other = first.setdefault(job.config.run.name or run_hash, job)
        if other is job:
            continue
        differing = sorted({*other.overrides} ^ {*job.overrides}) or job.overrides
        settings = ", ".join(differing)
        name = run_id.run_name(job.config)
        if job.config.run.name is not None:
            raise ConfigError(
                f"run.name={name}: two jobs would share this folder ({settings}); "
                "leave run.name out, or give each job a name of its own"
            )
        keys = ", ".join(sorted({parse_override(text).key for text in differing}))
        raise ConfigError(f"sweep: {settings}: the same run, {name}; give {keys} one value")
    return hashes


def _sweep_section(node: DictConfig, overrides: Sequence[Override]) -> Sweep:
    """Parses the `sweep` section. Raises ConfigError, also for Hydra's keys that do not fit."""
    problems = ErrorList()
    sweep = parse_section(Sweep, resolve_section(node, "sweep"), "sweep", problems)
    if not problems:
        problems += hydra_problems(node, sweep)
    problems += search_problems(node)
    if problems:
        raise ConfigError(*with_typed_values(problems, overrides))
    return sweep


def _reject_unknown_plugin_keys(node: DictConfig) -> None:
    problems = [*unknown_plugin_keys(node, "launcher"), *unknown_plugin_keys(node, "sweeper")]
    if problems:
        raise ConfigError(*problems)


def _first_seed(node: DictConfig, overrides: Sequence[Override]) -> int:
    """Returns the configured seed, from which `sweep.repeats` counts. Raises ConfigError."""
    problems = ErrorList()
    seed: int = convert(Seed, resolve_section(node, "seed"), "seed", problems)
    if problems:
        raise ConfigError(*with_typed_values(problems, overrides))
    return seed


def _check_jobs(
    combinations: Sequence[list[str]],
    compose_job: ComposeFn,
    known_problems: Sequence[str],
    name_jobs: bool,
) -> list[ComposedJob]:
    """Composes and checks every job.

    Args:
        combinations: the overrides of each job.
        compose_job: composes the overrides of one job.
        known_problems: the problems of the whole sweep; those of Hydra's keys are of no job.
        name_jobs: whether a problem names the first job that has it.

    Raises:
        ConfigError: with the problems of the sweep and of all jobs.
    """
    jobs: list[ComposedJob] = []
    every_job = list(range(1, len(combinations) + 1))
    jobs_by_problem = {problem: every_job for problem in known_problems}
    for number, texts in enumerate(combinations, 1):
        try:
            overrides = [*map(parse_override, texts)]
            config = pin_data(_job_config(overrides, compose_job))
            jobs.append(ComposedJob(texts, config))
        except ConfigError as error:
            for problem in error.problems:
                if problem not in known_problems:
                    jobs_by_problem.setdefault(problem, []).append(number)
    if jobs_by_problem and name_jobs:
        raise ConfigError(*_named_problems(jobs_by_problem, len(combinations)))
    if jobs_by_problem:
        raise ConfigError(*jobs_by_problem)
    return jobs


def _job_config(overrides: Sequence[Override], compose_fn: ComposeFn) -> Config:
    composition = compose_or_diagnose(overrides, compose_fn)
    config = pin_init_weights(build_config(composition, overrides))
    objective = config.sweep.objective
    if objective.startswith("val/") and not config.data.val_fraction:
        raise ConfigError(
            f"sweep.objective={objective}: needs a validation split, but data.val_fraction=0; "
            "choose test/accuracy or train/accuracy"
        )
    return config


def _named_problems(jobs_by_problem: Mapping[str, list[int]], count: int) -> Iterator[str]:
    """Yields each problem after the first job that has it; without a job if all jobs have it."""
    for problem, numbers in list(jobs_by_problem.items())[:MAX_PROBLEMS]:
        if len(numbers) == count:
            yield problem
        else:
            yield f"sweep job {numbers[0]} of {count}: {problem}"
    if len(jobs_by_problem) > MAX_PROBLEMS:
        yield f"and {len(jobs_by_problem) - MAX_PROBLEMS} more"
