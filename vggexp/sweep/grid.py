"""From the arguments of a sweep to its jobs: one pure function for the check beforehand and for the sweeper."""

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, product
from math import prod
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from vggexp.config.keys import flatten
from vggexp.config.schema import Sweep
from vggexp.errors import ConfigError
from vggexp.formatting import format_value

SWEEP_ONLY_KEYS = (
    "sweep.pairs",
    "sweep.repeats",
    "sweep.where",
)  # what makes the jobs, and is none of theirs

GridComposeFn = Callable[[Sequence[str]], DictConfig]
GridAxis = list[list[str]]  # of each value, the overrides that belong together


def expand_grid(
    config_loader: Any, arguments: Sequence[str], params: Mapping[str, Any], sweep: Sweep, seed: int
) -> GridAxis:
    """The overrides of every job, the last axis turning fastest; pairs and repeats turn faster than the others.

    params: axes from a sweep file (hydra.sweeper.params); an argument of the same key takes their place. seed: the
    configured one, from which repeats count up. Raises ConfigError for an axis without discrete values, for one
    without any, for a key that two axes set, and for more than sweep.max_jobs jobs.
    """
    overrides = [
        one
        for one in _parsed(config_loader, arguments, params)
        if one.key_or_group not in SWEEP_ONLY_KEYS
    ]
    keys = {override.get_key_element(): override.is_sweep_override() for override in overrides}
    axes = [[[value] for value in _axis(override, sweep.max_jobs)] for override in overrides]
    axes += [*_pairs(sweep, keys), *_repeats(sweep, keys, seed)]
    if prod(map(len, axes)) > sweep.max_jobs:
        raise ConfigError(
            f"sweep: more than sweep.max_jobs={sweep.max_jobs} jobs; take fewer values or raise that number"
        )
    return [[word for words in combination for word in words] for combination in product(*axes)]


def endpoint_jobs(
    config_loader: Any, arguments: Sequence[str], params: Mapping[str, Any], sweep: Sweep
) -> GridAxis:
    """Jobs that a search may make: every choice, both ends of intervals and ranges, the others at their first."""
    for key in ("pairs", "repeats", "where"):
        if getattr(sweep, key) not in ((), 1, None):
            raise ConfigError(
                f"sweep.{key}={format_value(getattr(sweep, key))}: belongs to a grid; this sweeper searches"
            )
    axes = []
    for override in _parsed(config_loader, arguments, params):
        key = override.get_key_element()
        value = override.value()
        if isinstance(value, IntervalSweep):
            axes.append([f"{key}={value.start}", f"{key}={value.end}"])
            continue
        values = _axis(override, sweep.max_jobs)
        axes.append(
            [values[0], values[-1]] if override.is_range_sweep() and len(values) > 1 else values
        )
    first = [axis[0] for axis in axes]
    others = [
        [*first[:place], value, *first[place + 1 :]]
        for place, axis in enumerate(axes)
        for value in axis[1:]
    ]
    return [first, *others]


def _parsed(
    config_loader: Any, arguments: Sequence[str], params: Mapping[str, Any]
) -> list[Override]:
    """The last one of each key is what counts."""
    written = [f"{key}={value}" for key, value in params.items()] + list(arguments)
    try:
        parsed = OverridesParser.create(config_loader=config_loader).parse_overrides(written)
    except HydraException as error:
        raise ConfigError(" ".join(str(error).split())) from error
    return list({override.get_key_element(): override for override in parsed}.values())


def _axis(override: Override, at_most: int) -> list[str]:
    """One override for each value, of which one more than `at_most` are enough to refuse the sweep."""
    text = override.input_line or ""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [text]
    if not override.is_discrete_sweep():
        raise ConfigError(f"{text}: a grid needs single values; use a search sweeper for intervals")
    try:
        values = [
            f"{key}={value}" for value in islice(override.sweep_string_iterator(), at_most + 1)
        ]
    except (HydraException, ValueError, ArithmeticError) as error:
        raise ConfigError(f"{text}: {error}") from error
    if not values:
        raise ConfigError(f"{text}: no value; a sweep of it has no job")
    return values


def _pairs(sweep: Sweep, keys: Mapping[str, bool]) -> Iterator[GridAxis]:
    """One axis, whose values are sets of overrides."""
    rows = [flatten(pair) for pair in sweep.pairs]
    for key in dict.fromkeys(key for row in rows for key in row):
        if key in keys:
            raise ConfigError(f"sweep.pairs: {key} is given outside of it as well; leave one out")
    if rows:
        yield [[format_override(key, value) for key, value in row.items()] for row in rows]


def _repeats(sweep: Sweep, keys: Mapping[str, bool], seed: int) -> Iterator[GridAxis]:
    if sweep.repeats == 1:
        return
    if keys.get("seed") or any("seed" in pair for pair in sweep.pairs):
        raise ConfigError(
            f"sweep.repeats={sweep.repeats}: the seed is swept as well; leave one out"
        )
    yield [[f"seed={seed + number}"] for number in range(sweep.repeats)]


def format_override(key: str, value: Any) -> str:
    """An override as Hydra reads it back."""
    text = f"{key}={format_value(value)}"
    try:
        if OverridesParser.create().parse_override(text).value() == value:
            return text
    except HydraException:
        pass
    return f"{key}={json.dumps(value, ensure_ascii=False)}"  # in quotes


def cached_compose(composed: GridComposeFn) -> GridComposeFn:
    """As `composed`, but reads each choice of files once: what a sweep's jobs differ in is mostly single values."""
    parser = OverridesParser.create()
    bases = dict[tuple[str, ...], DictConfig]()
    loader: Any = GlobalHydra.instance().config_loader()

    def made(overrides: Sequence[str]) -> DictConfig:
        parsed = parser.parse_overrides(list(overrides))
        files = [override for override in parsed if loader.get_group_options(override.key_or_group)]
        chosen = tuple(override.input_line or "" for override in files)
        if chosen not in bases:
            bases[chosen] = composed(chosen)
        node = copy.deepcopy(bases[chosen])
        loader._apply_overrides_to_config(
            [override for override in parsed if override not in files], node
        )
        return node

    return made


def hydra_problems(node: DictConfig, sweep: Sweep) -> Iterator[str]:
    """Of Hydra's own keys that do not go with a sweep here, and of the launchers'."""
    choices = node.hydra.runtime.choices
    local = choices.get("hydra/launcher") == "local"
    if choices.get("hydra/sweeper") == "basic":
        yield "hydra/sweeper=basic: not allowed; hydra/sweeper=grid makes the same jobs and more"
    if node.hydra.job.chdir:
        yield "hydra.job.chdir=true: not allowed, a run has a folder of its own under run.root"
    if sweep.on_error == "stop" and not (local and choices.get("hydra/sweeper") == "grid"):
        yield "sweep.on_error=stop: needs hydra/sweeper=grid and hydra/launcher=local"
    if local:
        yield from _launcher_problems(node.hydra.launcher)
    if node.resume == "never" and "array_parallelism" in node.hydra.launcher:  # of Slurm alone
        yield "resume=never: a job that Slurm starts again continues its run; choose auto, exact or force"


def _launcher_problems(launcher: DictConfig) -> Iterator[str]:
    """Of the local launcher's own keys."""
    for key, other in (("jobs", "auto"), ("slots_per_gpu", None)):
        value = launcher.get(key)
        if value != other and not (
            isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 4096
        ):
            yield f"hydra.launcher.{key}={format_value(value)}: must be {f'{other} or ' if other else ''}1..4096"
    gpus = launcher.get("gpus")
    if gpus is not None and not (
        OmegaConf.is_list(gpus) and len(gpus) and len(set(gpus)) == len(gpus)
    ):
        yield f"hydra.launcher.gpus={format_value(gpus)}: must be a list of different devices, as [0,1], or null"
