"""A search as typed: its axes, its settings and its name, all checked without Optuna."""

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
from vggexp.sweep.grid import _axis, _parsed

MAX_VALUES = 100_000  # of a range of fractions, which is held value by value


@dataclass(frozen=True)
class SearchSettings:
    """The keys of hydra.sweeper."""

    n_trials: Annotated[int, Range(1, 10**6)]
    sampler: Literal["tpe", "random"]
    seed: Annotated[int, Range(0, 2**63 - 1)]
    parallel: Annotated[int, Range(1, 4096)] | None


class SearchAxis(NamedTuple):
    """Choices in `values` alone, or numbers from low to high, both included."""

    values: tuple[str, ...] = ()  # as typed; with `step`, what its numbers are called
    low: float | None = None
    high: float | None = None
    step: float | None = None
    log: bool = False

    def text(self, value: Any) -> str:
        """A value of the axis as an override has it."""
        if self.low is None:
            return str(value)
        return (
            min(self.values, key=lambda known: abs(float(known) - value))
            if self.values
            else repr(value)
        )


class SearchPlan(NamedTuple):
    name: str
    folder: Path
    axes: dict[str, SearchAxis]
    config: Config  # with every axis at its first value


def search_axes(
    config_loader: Any, arguments: Sequence[str], params: Mapping[str, Any]
) -> tuple[list[str], dict[str, SearchAxis]]:
    """The overrides that every trial has, and the axes by their keys. Raises ConfigError."""
    parsed = _parsed(config_loader, arguments, params)
    problems = ErrorList()
    found = dict[str, SearchAxis]()
    for override in parsed:
        if override.is_sweep_override():
            try:
                found[override.get_key_element()] = _read(override)
            except ConfigError as error:
                problems += error.problems
    if problems or not found:
        raise ConfigError(
            *(
                problems
                or ["hydra/sweeper=optuna: no axis; give a key an interval or several values"]
            )
        )
    return [
        override.input_line or "" for override in parsed if not override.is_sweep_override()
    ], found


def _read(override: Override) -> SearchAxis:
    text = override.input_line or ""
    sweep = override.value()
    tags: set[str] = getattr(sweep, "tags", set())
    if tags - {"log"}:
        raise ConfigError(f"{text}: tag {', '.join(sorted(tags - {'log'}))}: unknown; allowed log")
    if isinstance(sweep, IntervalSweep):
        return _interval(text, sweep)
    if tags:
        raise ConfigError(f"{text}: tag log: belongs to an interval; write tag(log,interval(...))")
    return _range(override) if override.is_range_sweep() else SearchAxis(_values(override))


def _interval(text: str, sweep: IntervalSweep) -> SearchAxis:
    assert sweep.start is not None and sweep.end is not None
    if not sweep.start <= sweep.end:
        raise ConfigError(f"{text}: its start is above its end")
    if "log" in sweep.tags and sweep.start <= 0:
        raise ConfigError(f"{text}: a logarithmic interval starts above 0")
    return SearchAxis(low=sweep.start, high=sweep.end, log="log" in sweep.tags)


def _range(override: Override) -> SearchAxis:
    """Whole numbers are kept as their ends; fractions also as Hydra counts them, so that a grid has the same."""
    sweep: Any = override.value()
    if isinstance(numbers := sweep.range(), range) and numbers:
        low, high = sorted((numbers[0], numbers[-1]))
        return SearchAxis(low=low, high=high, step=abs(numbers.step))
    values = _values(override)
    if len(values) > MAX_VALUES:
        raise ConfigError(f"{override.input_line}: more than {MAX_VALUES} values; take an interval")
    ends = sorted((float(values[0]), float(values[-1])))
    return SearchAxis(values, ends[0], ends[1], abs(float(sweep.step)))


def _values(override: Override) -> tuple[str, ...]:
    """Each once, and in an order that a shuffled axis has again when the search goes on."""
    values = dict.fromkeys(text.partition("=")[2] for text in _axis(override, MAX_VALUES))
    return tuple(sorted(values) if getattr(override.value(), "shuffle", False) else values)


def search_settings(
    sweeper: DictConfig, problems: ErrorList, launcher: DictConfig | None = None
) -> SearchSettings:
    """Of hydra.sweeper. `parallel` is as many as the launcher says it runs at a time, where it is not given."""
    node = OmegaConf.to_container(sweeper)
    assert isinstance(node, dict)
    values = {str(field.name): node[field.name] for field in fields(SearchSettings)}
    if values["parallel"] is None and launcher is not None:
        values["parallel"] = _at_once(launcher)
    return parse_section(SearchSettings, values, "hydra.sweeper", problems)


def _at_once(launcher: DictConfig) -> int:
    """joblib calls it n_jobs, with -1 for every core; the local launcher jobs."""
    count = launcher.get("n_jobs", launcher.get("jobs"))
    if count == -1:
        return os.cpu_count() or 1
    return count if isinstance(count, int) and count > 0 else 1


def is_search(node: DictConfig) -> bool:
    return bool(node.hydra.runtime.choices.get("hydra/sweeper") == "optuna")


def search_problems(node: DictConfig) -> Iterator[str]:
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
    node: DictConfig, found: dict[str, SearchAxis], ends: Sequence[Config], typed: bool
) -> SearchPlan:
    """The search with its folder. ends: of `grid.ends`. typed: the command names the folder. Raises ConfigError."""
    names = [run_name(config) for config in ends]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(
            f"search: {names.count(twice)} of its settings share the folder {twice}; they are one run"
        )
    name = search_name(node.hydra.sweeper, found, ends[0])
    folder = Path(node.hydra.sweep.dir) if typed else Path(ends[0].run.root) / "sweeps" / name
    return SearchPlan(name, folder, found, ends[0])


def search_name(sweeper: Mapping[str, Any], found: Mapping[str, SearchAxis], first: Config) -> str:
    """The searched keys and 8 hexadecimal digits of what makes a search what it is.

    That is not the number of trials, nor how many run at a time: the same search goes on with more of them.
    """
    parts = [
        sorted(found.items()),
        identity(to_plain(first)),
        first.sweep.objective,
        sweeper["sampler"],
        sweeper["seed"],
    ]
    keys = "-".join(key.lstrip("+").replace("/", ".") for key in found)
    return f"search-{keys[:80]}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]}"
