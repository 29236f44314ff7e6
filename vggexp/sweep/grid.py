"""Makes the jobs of a sweep from its overrides: all combinations of a grid, or a search's ends."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import chain, product
from math import prod
from typing import Any, NamedTuple

from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import IntervalSweep
from omegaconf import DictConfig, OmegaConf

from vggexp.config import own_files
from vggexp.config.compose import copy_sections, referring_sections, without_plugins
from vggexp.config.diagnostics import ComposeFn
from vggexp.config.hydra_safety import TARGET, plugin_name, resolve_section
from vggexp.config.keys import flatten
from vggexp.config.overrides import (
    Override,
    format_override,
    group_options,
    last_of_each_key,
    parse_override,
    parse_overrides,
    typed_values,
)
from vggexp.config.schema import Sweep
from vggexp.errors import ConfigError
from vggexp.formatting import format_value

# Keys that define the set of jobs. No job has them among its overrides.
SWEEP_ONLY_KEYS = (
    "sweep.pairs",
    "sweep.repeats",
    "sweep.where",
    "sweep.halving",
    "sweep.halving_start",
    "sweep.lr_range",
)
# Keys without influence on the result of a run: jobs that differ in them are the same run.
UNSWEEPABLE_KEYS = (
    "run.root",
    "run.until",
    "resume",
    "data.download",
    "data.workers",
    "train.checkpoint_minutes",
    "train.rest_minutes",
    "train.keep",
    "train.probe_steps",
    "train.stop_if_dead",
    "device.timeout_minutes",
)
SUBMITIT_COUNTS = ("timeout_min", "nodes", "tasks_per_node", "cpus_per_task", "array_parallelism")
# What joblib takes, as Hydra's launcher calls it: pattern of the value, and its words in an error.
JOBLIB_VALUES = {
    "backend": ("null|loky", "null or loky; each job has a process of its own"),
    "prefer": ("null|processes", "processes; each job has a process of its own"),
    "require": ("null", "null; each job has a process of its own"),
    "verbose": (r"\d{1,4}", "0..9999"),
    "timeout": ("null", "null; it would end the whole sweep with the first job that takes longer"),
    "pre_dispatch": (r"all|[1-9]\d{0,5}|([1-9]\d?\*)?n_jobs", "all, N, n_jobs or N*n_jobs"),
    "batch_size": (r"auto|[1-9]\d{0,5}", "auto or 1..999999"),
    "max_nbytes": (r"null|\d{1,15}[KMG]?", "null or a size, as 10M"),
    "mmap_mode": (r"r\+?|w\+|c", "r, r+, w+ or c"),
}
NOT_SWEPT = "may not be swept, it belongs to the whole sweep; give one value"
NOT_IN_A_JOB = "a file that is swept may not set it, it belongs to the whole sweep"
PARAMS = "hydra.sweeper.params."  # an axis in a file is a key behind it
MAX_LAUNCHER_COUNT = 4096  # jobs at a time, and jobs on one GPU

GridAxis = list[list[str]]  # for each value of the axis, the overrides that belong together


def expand_grid(overrides: Sequence[Override], sweep: Sweep, seed: int) -> list[list[str]]:
    """Returns the overrides of every job of a grid.

    The last axis changes fastest. Pairs and repeats change faster than the other axes.

    Args:
        overrides: the result of `job_overrides`.
        sweep: the section `sweep`.
        seed: the configured seed, from which repeats count.

    Raises:
        ConfigError: an axis has no value or no single values, two axes set the same key, or
            there are more than sweep.max_jobs jobs.
    """
    axes: list[GridAxis] = []
    is_axis: dict[str, bool] = {}
    for override in overrides:
        if override.key not in SWEEP_ONLY_KEYS:
            is_axis[override.key] = override.is_sweep
            texts = override.single_values(sweep.max_jobs + 1)  # one too many is enough to refuse
            axes.append([[text] for text in texts])
    pairs = _pair_axis(sweep, is_axis)
    pair_texts = chain.from_iterable(chain.from_iterable(pairs))
    sweeps_seed = is_axis.get("seed") or "seed" in typed_values(map(parse_override, pair_texts))
    axes += [*pairs, *_repeat_axis(sweep, seed, sweeps_seed)]
    if prod(map(len, axes)) > sweep.max_jobs:
        raise ConfigError(
            f"sweep: more than sweep.max_jobs={sweep.max_jobs} jobs; "
            "take fewer values or raise that number"
        )
    return [list(chain.from_iterable(values)) for values in product(*axes)]


def endpoint_jobs(overrides: Sequence[Override], sweep: Sweep) -> list[list[str]]:
    """Returns the jobs by which a search is checked before it starts.

    The first job has the first value of every axis. Each further job changes one axis, to another
    choice or to the other end of its interval or range. See `expand_grid` for the parameters.
    """
    grid_keys = (("pairs", ()), ("repeats", 1), ("where", None), ("lr_range", None))
    for key, default in grid_keys:
        value = getattr(sweep, key)
        if value and value != default:
            raise ConfigError(
                f"sweep.{key}={format_value(value)}: belongs to a grid; this sweeper searches"
            )
    axes = [_endpoints(override, sweep.max_jobs) for override in overrides]
    first = [axis[0] for axis in axes]
    jobs = [first]
    for index, axis in enumerate(axes):
        for text in axis[1:]:
            jobs.append([*first[:index], text, *first[index + 1 :]])
    return jobs


def _endpoints(override: Override, limit: int) -> list[str]:
    sweep = override.value
    if isinstance(sweep, IntervalSweep):
        return [override.with_value(sweep.start), override.with_value(sweep.end)]
    texts = override.single_values(limit)
    if override.numbers is not None and len(texts) > 1:
        return [override.with_value(override.numbers[0]), override.with_value(override.numbers[-1])]
    return texts


def job_overrides(overrides: Sequence[Override], params: Mapping[str, Any]) -> list[Override]:
    """Returns what the jobs of a sweep are made of; of several overrides of a key only the last.

    Hydra's own keys are left out: Hydra itself adds the overrides of these keys to each job.

    Args:
        overrides: the overrides of the command.
        params: axes of a sweep file (hydra.sweeper.params); an override of the same key wins.

    Raises:
        ConfigError: an axis is forbidden, or a file has an axis that cannot be parsed.
    """
    texts = []
    for key, value in params.items():
        texts.append(f"{key}={value}" if isinstance(value, str) else format_override(key, value))
    from_file, problems = parse_overrides(texts)
    axes = []
    for override in from_file:
        if _belongs_to_the_sweep(override.key):
            problems.append(f"hydra.sweeper.params: {override.text}: {NOT_SWEPT}")
        else:
            axes.append(override)
    chosen = last_of_each_key([*axes, *overrides])
    for override in chosen:
        if override.is_sweep and (problem := _unsweepable(override)):
            problems.append(problem)
    if problems:
        raise ConfigError(*problems)
    return [override for override in chosen if not override.is_hydra]


def _belongs_to_the_sweep(key: str) -> bool:
    return re.split("[./]", key)[0] in ("sweep", "hydra")


def _unsweepable(override: Override) -> str | None:
    """Returns why no job of a sweep may have a key for itself; None if it may."""
    if _belongs_to_the_sweep(override.key):
        return f"{override.text}: {NOT_SWEPT}"
    if override.key in UNSWEEPABLE_KEYS:
        return f"{override.text}: may not be swept, it makes no other run; give one value"
    return None


def _pair_axis(sweep: Sweep, is_axis: Mapping[str, bool]) -> list[GridAxis]:
    """Returns one axis whose values are the sets of overrides of `sweep.pairs`, or no axis."""
    axis: GridAxis = []
    for pair in sweep.pairs:
        texts = [format_override(key, value) for key, value in flatten(pair).items()]
        overrides, problems = parse_overrides(texts)
        for override in overrides:
            if problem := _unsweepable(override):
                problems.append(problem)
            elif override.key in is_axis:
                problems.append(f"{override.key} is given outside of it as well; leave one out")
        if problems:
            raise ConfigError(*(f"sweep.pairs: {problem}" for problem in problems))
        axis.append(texts)
    return [axis] if axis else []


def _repeat_axis(sweep: Sweep, seed: int, is_swept: bool) -> list[GridAxis]:
    """Returns one axis of `sweep.repeats` seeds, or no axis.

    Args:
        is_swept: whether another axis sets the seed.
    """
    if sweep.repeats == 1:
        return []
    if is_swept:
        raise ConfigError(
            f"sweep.repeats={sweep.repeats}: the seed is swept as well; leave one out"
        )
    return [[[f"seed={seed + index}"] for index in range(sweep.repeats)]]


class ComposedFiles(NamedTuple):
    """What a choice of files composes to, for the jobs that have it."""

    node: DictConfig
    referring: set[str]  # sections whose values refer to other keys


def cached_compose(
    compose_fn: ComposeFn,
    hydra_overrides: Sequence[Override],
    common: Collection[str] = (),
    check_files: Callable[[DictConfig], None] | None = None,
) -> ComposeFn:
    """Returns a function that composes a job, without the launcher and the sweeper.

    It composes each choice of files, with the values that all jobs have, only once. The jobs of a
    sweep differ mostly in single values, which are set on a copy. Of Hydra's own keys it has only
    what `build_config` reads (measured: 20 of 25 ms for each job).

    Args:
        compose_fn: composes a list of overrides with Hydra.
        hydra_overrides: the overrides of Hydra's own keys, which all jobs have.
        common: overrides that all jobs have, and that may be applied before all others.
        check_files: checks what a choice of files composes to. Raises ConfigError.
    """
    loader: Any = GlobalHydra.instance().config_loader()
    shared = [override.text for override in hydra_overrides]
    composed_files: dict[tuple[str, ...], ComposedFiles] = {}

    def compose_job(overrides: Sequence[str]) -> DictConfig:
        files = []
        values = []
        changed = set()  # sections, and keys outside of sections
        for override in map(parse_override, overrides):
            if group_options(override.key) or override.text in common:
                files.append(override.text)
            else:
                values.append(override.parsed)
                changed.add(override.key.partition(".")[0])
        texts = tuple(files)
        if texts not in composed_files:
            complete = compose_fn([*shared, *texts])
            if check_files is not None:
                check_files(complete)
            composed = without_plugins(complete)
            composed_files[texts] = ComposedFiles(composed, referring_sections(composed))
        composed, referring = composed_files[texts]
        node = copy_sections(composed, changed | referring)
        loader._apply_overrides_to_config(values, node)
        return node

    return compose_job


def whole_sweep_check(
    sweep_node: DictConfig, overrides: Sequence[Override]
) -> Callable[[DictConfig], None]:
    """Returns a check of a job's files: a swept one may not set a key of the whole sweep.

    Args:
        sweep_node: what defines the sweep, without the swept files.
        overrides: those of the command, which win over all files.
    """
    typed = []
    for override in overrides:
        if isinstance(override.value, dict):  # Hydra merges it into what the files have
            typed += [f"{key}." for key in flatten({override.key: override.value})]
        elif not group_options(override.key):
            typed.append(f"{override.key}.")
        typed.append(f"{PARAMS}{override.key}.")  # an axis on the command line replaces a file's
    expected = _whole_sweep_keys(sweep_node)

    def check(node: DictConfig) -> None:
        differing = {}
        for key, value in _whole_sweep_keys(node).items():
            if value != expected.get(key) and not f"{key}.".startswith(tuple(typed)):
                differing[key] = value
        for section in ("launcher", "sweeper"):
            if f"hydra/{section}" in differing:  # another one, which has other keys
                prefix = f"hydra.{section}."
                differing = {key: differing[key] for key in differing if prefix not in key}
        problems = []
        for key, value in differing.items():
            shown = f"{key}={format_value(value)}"
            given = shown.removeprefix(PARAMS) if PARAMS in key else "it"
            advice = f"give {given} on the command line"
            if key == "hydra.mode":
                advice = "leave it out, -m makes the sweep"
            problem = f"{shown}: {NOT_IN_A_JOB}; {advice}"
            problems.append(own_files.name_file(problem))
        if problems:
            raise ConfigError(*problems)

    return check


def _whole_sweep_keys(node: DictConfig) -> dict[str, Any]:
    """Returns the keys of the sweep, its launcher and its sweeper, as the files have them."""
    sections = {}
    for key in ("resume", "sweep", "hydra.sweep", "hydra.launcher", "hydra.sweeper"):
        value = OmegaConf.select(node, key)
        is_section = OmegaConf.is_config(value)
        sections[key] = OmegaConf.to_container(value, resolve=False) if is_section else value
    keys = flatten(sections)
    for section in ("launcher", "sweeper"):
        del keys[f"hydra.{section}.{TARGET}"]
        keys[f"hydra/{section}"] = plugin_name(node.hydra, section)
    mode = resolve_section(node, "hydra.mode")
    keys["hydra.mode"] = mode and mode.name
    return keys


def common_overrides(combinations: Sequence[Sequence[str]]) -> set[str]:
    """Returns the overrides that all jobs have."""
    return set.intersection(*map(set, combinations))


def without_related(common: set[str], combinations: Sequence[Sequence[str]]) -> set[str]:
    """Returns the common overrides that may be applied before all others.

    The order counts only if a key contains another one: `train={ema:0.9}`, `train.epochs=2`.
    """
    other_keys = {parse_override(text).key for job in combinations for text in set(job) - common}
    related = set()
    for text in common:
        key = parse_override(text).key
        if any(f"{key}.".startswith(f"{other}.") for other in other_keys):
            related.add(text)
        elif any(f"{other}.".startswith(f"{key}.") for other in other_keys):
            related.add(text)
    return common - related


def hydra_problems(node: DictConfig, sweep: Sweep) -> Iterator[str]:
    """Yields a problem for each of Hydra's keys, and its launchers' keys, that a sweep rejects."""
    sweeper = plugin_name(node.hydra, "sweeper")
    launcher = plugin_name(node.hydra, "launcher")
    is_local = launcher == "local"
    settings = resolve_section(node, "hydra.launcher")
    if sweeper == "basic":
        yield "hydra/sweeper=basic: not allowed; hydra/sweeper=grid makes the same jobs and more"
    if resolve_section(node, "hydra.job.chdir"):
        yield "hydra.job.chdir=true: not allowed, a run has a folder of its own under run.root"
    if sweep.on_error == "stop" and not (is_local and sweeper == "grid"):
        yield "sweep.on_error=stop: needs hydra/sweeper=grid and hydra/launcher=local"
    if is_local:
        yield from _local_problems(settings)
    if launcher == "joblib":
        yield from _joblib_problems(settings)
    if launcher in ("slurm", "submitit_local"):
        for key in SUBMITIT_COUNTS:
            count = settings.get(key)
            if count is not None and count < 1:
                yield f"hydra.launcher.{key}={settings[key]}: must be at least 1"
    if launcher == "slurm" and resolve_section(node, "resume") == "never":
        yield (
            "resume=never: a job that Slurm starts again continues its run; "
            "choose auto, exact or force"
        )


def unknown_plugin_keys(node: DictConfig, section: str) -> Iterator[str]:
    """Yields a problem for each key that the launcher or the sweeper does not know.

    The known keys are those of the configuration that the plugin has stored. Some classes take any
    key, and ignore or refuse an unknown one only when the jobs start.

    Args:
        section: `launcher` or `sweeper`.
    """
    values = resolve_section(node, f"hydra.{section}")
    target = values.pop(TARGET)
    stored = ConfigStore.instance().repo["hydra"][section].values()
    known = next(file.node for file in stored if file.node[TARGET] == target)
    names = [key for key in known if key != TARGET]
    if {*values} - {*names} and plugin_name(node.hydra, section) == "slurm":
        from submitit.slurm.slurm import SlurmExecutor

        names = sorted({*names, *SlurmExecutor._valid_parameters()})
    for key in values:
        if key not in names:
            keys = ", ".join(names) or "none"
            yield f"hydra.{section}.{key}: unknown key; keys of this {section}: {keys}"


def _joblib_problems(launcher: Mapping[str, Any]) -> Iterator[str]:
    """Yields a problem for each key that joblib refuses, ignores, or ends the whole sweep by."""
    count = launcher["n_jobs"]
    if not isinstance(count, int) or count == 0 or count > MAX_LAUNCHER_COUNT:
        yield (
            f"hydra.launcher.n_jobs={format_value(count)}: must be a number of jobs at a time, "
            f"at most {MAX_LAUNCHER_COUNT}, or -1 for every core"
        )
    for key, (pattern, expected) in JOBLIB_VALUES.items():
        text = format_value(launcher.get(key))
        if not re.fullmatch(pattern, text):
            yield f"hydra.launcher.{key}={text}: must be {expected}"


def _local_problems(launcher: Mapping[str, Any]) -> Iterator[str]:
    """Yields a problem for each invalid key of the local launcher."""
    jobs = launcher.get("jobs")
    if jobs != "auto" and not _is_count(jobs):
        yield (f"hydra.launcher.jobs={format_value(jobs)}: must be auto or 1..{MAX_LAUNCHER_COUNT}")
    slots = launcher.get("slots_per_gpu")
    if slots is not None and not _is_count(slots):
        yield (
            f"hydra.launcher.slots_per_gpu={format_value(slots)}: must be 1..{MAX_LAUNCHER_COUNT}"
        )
    gpus = launcher.get("gpus")
    is_unique_list = isinstance(gpus, list) and len(gpus) == len({str(gpu) for gpu in gpus}) > 0
    if gpus is not None and not is_unique_list:
        yield (
            f"hydra.launcher.gpus={format_value(gpus)}: "
            "must be a list of different devices, as [0,1], or null"
        )


def _is_count(value: Any) -> bool:
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return 1 <= value <= MAX_LAUNCHER_COUNT
