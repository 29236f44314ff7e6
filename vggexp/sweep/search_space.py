"""Parses and checks a search as typed: axes, settings, name and folder. Does not import Optuna."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf

from vggexp.config.keys import to_plain
from vggexp.config.parse import ErrorList, parse_section
from vggexp.config.run_id import identity, run_name
from vggexp.config.schema import Config, Range
from vggexp.errors import ConfigError
from vggexp.sweep.grid import axis_overrides, last_overrides

MAX_VALUES = 100_000  # of a range of fractions, which is stored value by value
MAX_NAME_CHARS = 80  # of the searched keys in the name of a search


@dataclass(frozen=True)
class SearchSettings:
    """The keys of hydra.sweeper."""

    n_trials: Annotated[int, Range(1, 10**6)]
    sampler: Literal["tpe", "random"]
    seed: Annotated[int, Range(0, 2**63 - 1)]
    parallel: Annotated[int, Range(1, 4096)] | None


class SearchAxis(NamedTuple):
    """The choices in `values`, or the numbers from `low` to `high`, both included."""

    values: tuple[str, ...] = ()  # as typed; with `step`, the texts of the numbers
    low: float | None = None
    high: float | None = None
    step: float | None = None
    log: bool = False

    def text(self, value: Any) -> str:
        """Returns a value of the axis as an override has it."""
        if self.low is None:
            return str(value)
        if not self.values:
            return repr(value)
        return min(self.values, key=lambda text: abs(float(text) - value))


class SearchSpace(NamedTuple):
    fixed: list[str]  # the overrides that every trial has
    axes: dict[str, SearchAxis]  # by key


class SearchPlan(NamedTuple):
    """A checked search."""

    name: str
    folder: Path
    axes: dict[str, SearchAxis]
    config: Config  # with every axis at its first value


def search_space(
    config_loader: Any,
    arguments: Sequence[str],
    params: Mapping[str, Any],
) -> SearchSpace:
    """Parses the axes; see `grid.expand_grid` for the parameters. Raises ConfigError."""
    space = SearchSpace([], {})
    problems: list[str] = []
    for override in last_overrides(config_loader, arguments, params):
        if not override.is_sweep_override():
            space.fixed.append(override.input_line or "")
            continue
        try:
            space.axes[override.get_key_element()] = _parse_axis(override)
        except ConfigError as error:
            problems += error.problems
    if not problems and not space.axes:
        problems = ["hydra/sweeper=optuna: no axis; give a key an interval or several values"]
    if problems:
        raise ConfigError(*problems)
    return space


def _parse_axis(override: Override) -> SearchAxis:
    text = override.input_line or ""
    sweep = override.value()
    tags: set[str] = getattr(sweep, "tags", set())
    unknown = sorted(tags - {"log"})
    if unknown:
        raise ConfigError(f"{text}: tag {', '.join(unknown)}: unknown; allowed log")
    if isinstance(sweep, IntervalSweep):
        return _interval_axis(text, sweep)
    if tags:
        raise ConfigError(f"{text}: tag log: belongs to an interval; write tag(log,interval(...))")
    if override.is_range_sweep():
        return _range_axis(override)
    return SearchAxis(_axis_values(override))


def _interval_axis(text: str, sweep: IntervalSweep) -> SearchAxis:
    low = sweep.start
    high = sweep.end
    log = "log" in sweep.tags
    assert low is not None
    assert high is not None
    if not low <= high:
        raise ConfigError(f"{text}: its start is above its end")
    if log and low <= 0:
        raise ConfigError(f"{text}: a logarithmic interval starts above 0")
    return SearchAxis(low=low, high=high, log=log)


def _range_axis(override: Override) -> SearchAxis:
    """Returns a range by its ends; a range of fractions also has the texts that a grid has."""
    sweep: Any = override.value()
    numbers = sweep.range()
    if isinstance(numbers, range) and numbers:
        low, high = sorted((numbers[0], numbers[-1]))
        return SearchAxis(low=low, high=high, step=abs(numbers.step))
    values = _axis_values(override)
    if len(values) > MAX_VALUES:
        raise ConfigError(f"{override.input_line}: more than {MAX_VALUES} values; take an interval")
    first = float(values[0])
    last = float(values[-1])
    return SearchAxis(
        values=values,
        low=min(first, last),
        high=max(first, last),
        step=abs(float(sweep.step)),
    )


def _axis_values(override: Override) -> tuple[str, ...]:
    """Returns the different values, sorted if the axis is shuffled.

    So a continued search has the values in the same order.
    """
    values: dict[str, None] = {}  # an ordered set
    for text in axis_overrides(override, MAX_VALUES):
        _, _, value = text.partition("=")
        values[value] = None
    if getattr(override.value(), "shuffle", False):
        return tuple(sorted(values))
    return tuple(values)


def search_settings(
    sweeper: DictConfig,
    problems: ErrorList,
    launcher: DictConfig | None = None,
) -> SearchSettings:
    """Parses hydra.sweeper.

    Args:
        sweeper: the node hydra.sweeper.
        problems: receives the problems.
        launcher: the node hydra.launcher; its number of jobs at a time replaces a `parallel`
            that is null.
    """
    node = OmegaConf.to_container(sweeper)
    assert isinstance(node, dict)
    values = {field.name: node[field.name] for field in fields(SearchSettings)}
    if values["parallel"] is None and launcher is not None:
        values["parallel"] = _jobs_at_a_time(launcher)
    return parse_section(SearchSettings, values, "hydra.sweeper", problems)


def _jobs_at_a_time(launcher: DictConfig) -> int:
    """Returns joblib's `n_jobs`, in which -1 stands for every core, or the local `jobs`."""
    count = launcher.get("n_jobs", launcher.get("jobs"))
    if count == -1:
        return os.cpu_count() or 1
    return count if isinstance(count, int) and count > 0 else 1


def is_search(node: DictConfig) -> bool:
    return bool(node.hydra.runtime.choices.get("hydra/sweeper") == "optuna")


def search_problems(node: DictConfig) -> Iterator[str]:
    """Yields the problems of a search's settings; nothing if the sweeper does not search."""
    if not is_search(node):
        return
    problems = ErrorList()
    search_settings(node.hydra.sweeper, problems)
    yield from problems
    if node.resume == "never":
        yield "resume=never: a search continues its own runs; choose auto, exact or force"
    if node.sweep.dry_run:
        yield "sweep.dry_run=true: belongs to a grid; a search makes its jobs as it goes"
    if find_spec("optuna") is None:
        yield "hydra/sweeper=optuna: Optuna is not installed; pip install 'vggexp[search]'"


def plan_search(
    node: DictConfig,
    axes: dict[str, SearchAxis],
    configs: Sequence[Config],
    has_folder: bool,
) -> SearchPlan:
    """Names a search and chooses its folder.

    Args:
        node: the composed outline of the command.
        axes: the axes by key.
        configs: the configurations of `grid.endpoint_jobs`.
        has_folder: whether the command sets hydra.sweep.dir.

    Raises:
        ConfigError: two of the configurations are the same run.
    """
    names = [run_name(config) for config in configs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"search: {names.count(name)} of its settings share the folder {name}; "
                "they are one run"
            )
    name = search_name(node.hydra.sweeper, axes, configs)
    folder = Path(configs[0].run.root) / "sweeps" / name
    if has_folder:
        folder = Path(node.hydra.sweep.dir)
    return SearchPlan(name, folder, axes, configs[0])


def search_name(
    sweeper: Mapping[str, Any], axes: Mapping[str, SearchAxis], configs: Sequence[Config]
) -> str:
    """Returns the searched keys and 8 hexadecimal digits that identify the search.

    Neither the number of trials nor the number of trials at a time belongs to the identity:
    the same search continues with other numbers.

    Args:
        sweeper: the node hydra.sweeper.
        axes: the axes by key.
        configs: the configurations of `grid.endpoint_jobs`.
    """
    config = configs[0]
    parts = [
        sorted(axes.items()),
        identity(to_plain(config)),
        config.sweep.objective,
        sweeper["sampler"],
        sweeper["seed"],
    ]
    contents = {_content_hashes(config) for config in configs}
    if len(contents) > 1:  # a folder or file that is searched is part of the search by its contents
        parts.append(sorted(contents))
    text = json.dumps(parts)
    digest = hashlib.sha256(text.encode()).hexdigest()
    keys = "-".join(key.lstrip("+").replace("/", ".") for key in axes)
    return f"search-{keys[:MAX_NAME_CHARS]}-{digest[:8]}"


def _content_hashes(config: Config) -> tuple[str, str]:
    """Returns the hashes of the images and of the initial weights, "" where there is none."""
    keys = identity(to_plain(config))
    return keys.get("data.sha256", ""), keys.get("train.init_sha256", "")
