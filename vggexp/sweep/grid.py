"""Makes the jobs of a sweep from its overrides: all combinations of a grid, or a search's ends."""

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import chain, islice, product
from math import prod
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from vggexp.config.compose import own_keys
from vggexp.config.diagnostics import ComposeFn, parse_overrides
from vggexp.config.keys import flatten
from vggexp.config.schema import Sweep
from vggexp.errors import ConfigError
from vggexp.formatting import format_value

# Keys that define the set of jobs. No job has them among its overrides.
SWEEP_ONLY_KEYS = ("sweep.pairs", "sweep.repeats", "sweep.where")
# Keys without influence on the result of a run: jobs that differ in them are the same run.
UNSWEEPABLE_KEYS = (
    "run.root",
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
MAX_LAUNCHER_COUNT = 4096  # jobs at a time, and jobs on one GPU

GridAxis = list[list[str]]  # for each value of the axis, the overrides that belong together


def expand_grid(
    config_loader: Any,
    arguments: Sequence[str],
    params: Mapping[str, Any],
    sweep: Sweep,
    seed: int,
) -> list[list[str]]:
    """Returns the overrides of every job of a grid.

    The last axis changes fastest. Pairs and repeats change faster than the other axes.

    Args:
        config_loader: Hydra's, which knows the files that `glob` matches.
        arguments: the overrides of the command.
        params: axes of a sweep file (hydra.sweeper.params); an argument of the same key wins.
        sweep: the section `sweep`.
        seed: the configured seed, from which repeats count.

    Raises:
        ConfigError: an axis has no value or no single values, two axes set the same key, or
            there are more than sweep.max_jobs jobs.
    """
    axes: list[GridAxis] = []
    is_axis: dict[str, bool] = {}
    for override in last_overrides(config_loader, arguments, params):
        if override.key_or_group not in SWEEP_ONLY_KEYS:
            key = override.key_or_group
            is_axis[key] = override.is_sweep_override()
            texts = axis_overrides(override, sweep.max_jobs)
            axes.append([[text] for text in texts])
    axes += _pair_axis(sweep, is_axis)
    axes += _repeat_axis(sweep, is_axis, seed)
    if prod(map(len, axes)) > sweep.max_jobs:
        raise ConfigError(
            f"sweep: more than sweep.max_jobs={sweep.max_jobs} jobs; "
            "take fewer values or raise that number"
        )
    return [list(chain.from_iterable(values)) for values in product(*axes)]


def endpoint_jobs(
    config_loader: Any,
    arguments: Sequence[str],
    params: Mapping[str, Any],
    sweep: Sweep,
) -> list[list[str]]:
    """Returns the jobs by which a search is checked before it starts.

    The first job has the first value of every axis. Each further job changes one axis, to another
    choice or to the other end of its interval or range. See `expand_grid` for the parameters.
    """
    for key, default in (("pairs", ()), ("repeats", 1), ("where", None)):
        value = getattr(sweep, key)
        if value != default:
            raise ConfigError(
                f"sweep.{key}={format_value(value)}: belongs to a grid; this sweeper searches"
            )
    axes = []
    for override in last_overrides(config_loader, arguments, params):
        axes.append(_endpoints(override, sweep.max_jobs))
    first = [axis[0] for axis in axes]
    jobs = [first]
    for index, axis in enumerate(axes):
        for text in axis[1:]:
            jobs.append([*first[:index], text, *first[index + 1 :]])
    return jobs


def _endpoints(override: Override, limit: int) -> list[str]:
    key = override.get_key_element()
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [f"{key}={value.start}", f"{key}={value.end}"]
    texts = axis_overrides(override, limit)
    if override.is_range_sweep() and len(texts) > 1:
        return [texts[0], texts[-1]]
    return texts


def last_overrides(
    config_loader: Any,
    arguments: Sequence[str],
    params: Mapping[str, Any],
) -> list[Override]:
    """Parses axes and overrides; of several overrides of a key only the last remains."""
    texts = [f"{key}={value}" for key, value in params.items()]
    texts += arguments
    try:
        parser = OverridesParser.create(config_loader=config_loader)
        parsed = parser.parse_overrides(texts)
    except HydraException as error:
        raise ConfigError(" ".join(str(error).split())) from error
    last = {}
    for override in parsed:
        if problem := _axis_problem(override):
            raise ConfigError(problem)
        last[override.key_or_group] = override
    return list(last.values())


def reject_forbidden_axes(overrides: Sequence[str]) -> None:
    """Raises ConfigError for each typed override that sweeps a key which no job may differ in.

    Called before the sweep's own keys are read, which leaves out every key with several values.
    """
    parsed, _ = parse_overrides(overrides)
    problems = [problem for override in parsed if (problem := _axis_problem(override))]
    if problems:
        raise ConfigError(*problems)


def _axis_problem(override: Override) -> str | None:
    """Returns why a key with several values may not have them; None if it may."""
    if not override.is_sweep_override():
        return None
    return _unsweepable(override.key_or_group, override.input_line or "")


def _unsweepable(key: str, text: str) -> str | None:
    """Returns the problem of a key that no job of a sweep may have for itself."""
    if re.split("[./]", key)[0] in ("sweep", "hydra"):
        return f"{text}: may not be swept, it belongs to the whole sweep; give one value"
    if key in UNSWEEPABLE_KEYS:
        return f"{text}: may not be swept, it makes no other run; give one value"
    return None


def axis_overrides(override: Override, limit: int) -> list[str]:
    """Returns an override for each value of an axis, at most limit + 1 overrides.

    One override above the limit is enough to refuse the sweep. Raises ConfigError for an axis
    without single values or without any value.
    """
    text = override.input_line or ""
    if not override.is_sweep_override():
        return [text]
    if not override.is_discrete_sweep():
        raise ConfigError(f"{text}: a grid needs single values; use a search sweeper for intervals")
    key = override.get_key_element()
    try:
        values = _first_values(override, limit + 1)
    except (HydraException, ValueError, ArithmeticError) as error:
        raise ConfigError(f"{text}: {error}") from error
    if not values:
        raise ConfigError(f"{text}: no value; a sweep of it has no job")
    return [f"{key}={value}" for value in values]


def _first_values(override: Override, count: int) -> list[Any]:
    """Returns the first values of an axis. A longer range is not shuffled: that builds all."""
    sweep = override.value()
    if isinstance(sweep, RangeSweep) and sweep.shuffle:
        values: list[Any] = list(islice(sweep.range(), count))
        if len(values) == count:
            return values
    return list(islice(override.sweep_string_iterator(), count))


def _pair_axis(sweep: Sweep, is_axis: Mapping[str, bool]) -> list[GridAxis]:
    """Returns one axis whose values are the sets of overrides of `sweep.pairs`, or no axis."""
    axis: GridAxis = []
    for pair in sweep.pairs:
        values = flatten(pair)
        for key, value in values.items():
            text = f"sweep.pairs: {key}={format_value(value)}"
            if problem := _unsweepable(key.lstrip("+"), text):
                raise ConfigError(problem)
            if key in is_axis:
                raise ConfigError(
                    f"sweep.pairs: {key} is given outside of it as well; leave one out"
                )
        axis.append([format_override(key, value) for key, value in values.items()])
    return [axis] if axis else []


def _repeat_axis(sweep: Sweep, is_axis: Mapping[str, bool], seed: int) -> list[GridAxis]:
    """Returns one axis of `sweep.repeats` seeds, or no axis."""
    if sweep.repeats == 1:
        return []
    if is_axis.get("seed") or any("seed" in pair for pair in sweep.pairs):
        raise ConfigError(
            f"sweep.repeats={sweep.repeats}: the seed is swept as well; leave one out"
        )
    return [[[f"seed={seed + index}"] for index in range(sweep.repeats)]]


def format_override(key: str, value: Any) -> str:
    """Returns an override that Hydra's parser reads back as the same value."""
    text = f"{key}={format_value(value)}"
    try:
        if OverridesParser.create().parse_override(text).value() == value:
            return text
    except HydraException:
        pass  # needs quotes
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def cached_compose(compose_fn: ComposeFn) -> ComposeFn:
    """Returns a function that composes vggexp's keys, and reads each choice of files only once.

    The jobs of a sweep differ mostly in single values, which are set on a copy. Hydra's own keys
    are left out, because a job's configuration has none (measured: 20 of 25 ms for each job).
    """
    parser = OverridesParser.create()
    loader: Any = GlobalHydra.instance().config_loader()
    composed_files: dict[tuple[str, ...], DictConfig] = {}

    @cache
    def parse(text: str) -> Override:
        return parser.parse_override(text)

    @cache
    def needs_files(key: str) -> bool:
        """Returns whether Hydra itself has to compose a key."""
        return key.startswith("hydra.") or bool(loader.get_group_options(key))

    def compose_job(overrides: Sequence[str]) -> DictConfig:
        texts = []
        values = []
        for text in overrides:
            override = parse(text)
            if needs_files(override.key_or_group):
                texts.append(text)
            else:
                values.append(override)
        files = tuple(texts)
        if files not in composed_files:
            composed_files[files] = own_keys(compose_fn(files))
        node = copy.deepcopy(composed_files[files])
        loader._apply_overrides_to_config(values, node)
        return node

    return compose_job


def hydra_problems(node: DictConfig, sweep: Sweep) -> Iterator[str]:
    """Yields a problem for each of Hydra's keys, and its launchers' keys, that a sweep rejects."""
    choices = node.hydra.runtime.choices
    is_grid = choices.get("hydra/sweeper") == "grid"
    is_local = choices.get("hydra/launcher") == "local"
    if choices.get("hydra/sweeper") == "basic":
        yield "hydra/sweeper=basic: not allowed; hydra/sweeper=grid makes the same jobs and more"
    if node.hydra.job.chdir:
        yield "hydra.job.chdir=true: not allowed, a run has a folder of its own under run.root"
    if sweep.on_error == "stop" and not (is_local and is_grid):
        yield "sweep.on_error=stop: needs hydra/sweeper=grid and hydra/launcher=local"
    if is_local:
        yield from _launcher_problems(node.hydra.launcher)
    if node.resume == "never" and "array_parallelism" in node.hydra.launcher:  # only Slurm's
        yield (
            "resume=never: a job that Slurm starts again continues its run; "
            "choose auto, exact or force"
        )


def _launcher_problems(launcher: DictConfig) -> Iterator[str]:
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
    is_unique_list = OmegaConf.is_list(gpus) and len(gpus) and len(set(gpus)) == len(gpus)
    if gpus is not None and not is_unique_list:
        yield (
            f"hydra.launcher.gpus={format_value(gpus)}: "
            "must be a list of different devices, as [0,1], or null"
        )


def _is_count(value: Any) -> bool:
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return 1 <= value <= MAX_LAUNCHER_COUNT
