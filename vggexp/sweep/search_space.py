"""Parses and checks a search as typed: axes, settings, name and folder. Does not import Optuna."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from hydra.core.override_parser.types import IntervalSweep
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vggexp.config.diagnostics import compose_error_line
from vggexp.config.hydra_safety import plugin_name, resolve_section
from vggexp.config.keys import to_plain
from vggexp.config.overrides import NumberRange, Override
from vggexp.config.parse import ErrorList, parse_section
from vggexp.config.run_id import identity, short_hash
from vggexp.config.schema import Config, Range
from vggexp.errors import ConfigError
from vggexp.formatting import format_value
from vggexp.runs.directory import unused_name
from vggexp.sweep.grid import SWEEP_ONLY_KEYS
from vggexp.sweep.parallel import HOST_LAUNCHERS, planned_jobs_at_a_time

MAX_PARALLEL = 4096  # trials at once
MAX_VALUES = 100_000  # of a range of fractions, which is stored value by value
DEFAULT_FOLDER = "${run.root}/sweeps/latest"  # in config.yaml; stands for the name of the sweep
MAX_NAME_CHARS = 80  # of the searched keys in the name of a search


@dataclass(frozen=True)
class SearchSettings:
    """The keys of hydra.sweeper."""

    n_trials: Annotated[int, Range(1, 10**6)]
    sampler: Literal["tpe", "random"]
    seed: Annotated[int, Range(0, 2**63 - 1)]
    parallel: Annotated[int, Range(1, MAX_PARALLEL)] | None


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
    settings: SearchSettings  # `parallel` is a number
    jobs_at_a_time: int  # that share the threads of this host
    trials_at_a_time: int  # on all hosts
    label_override: str  # for Hydra, so that its jobs have the same labels


def search_space(overrides: Sequence[Override]) -> SearchSpace:
    """Parses the axes among the result of `grid.job_overrides`. Raises ConfigError."""
    space = SearchSpace([], {})
    problems: list[str] = []
    for override in overrides:
        if override.key in SWEEP_ONLY_KEYS:
            continue
        if not override.is_sweep:
            space.fixed.append(override.text)
            continue
        try:
            space.axes[override.prefixed_key] = _parse_axis(override)
        except ConfigError as error:
            problems += error.problems
    if not problems and not space.axes:
        problems = ["hydra/sweeper=optuna: no axis; give a key an interval or several values"]
    if problems:
        raise ConfigError(*problems)
    return space


def _parse_axis(override: Override) -> SearchAxis:
    text = override.text
    sweep = override.value
    tags: set[str] = getattr(sweep, "tags", set())
    unknown = sorted(tags - {"log"})
    if unknown:
        raise ConfigError(f"{text}: tag {', '.join(unknown)}: unknown; allowed log")
    if isinstance(sweep, IntervalSweep):
        return _interval_axis(text, sweep)
    if tags:
        raise ConfigError(f"{text}: tag log: belongs to an interval; write tag(log,interval(...))")
    if override.numbers is not None:
        return _range_axis(override, override.numbers)
    return SearchAxis(_distinct(override, override.value_texts(MAX_VALUES)))


def _interval_axis(text: str, sweep: IntervalSweep) -> SearchAxis:
    low = sweep.start
    high = sweep.end
    log = "log" in sweep.tags
    assert low is not None
    assert high is not None
    if not low < high:
        raise ConfigError(f"{text}: its start is not below its end")
    if log and low <= 0:
        raise ConfigError(f"{text}: a logarithmic interval starts above 0")
    return SearchAxis(low=low, high=high, log=log)


def _range_axis(override: Override, numbers: NumberRange) -> SearchAxis:
    """Returns a range by its ends; a range of fractions also has the texts that a grid has."""
    is_whole = numbers.denominator is None
    values = override.value_texts(1 if is_whole else MAX_VALUES + 1)
    if len(values) > MAX_VALUES:
        raise ConfigError(f"{override.text}: more than {MAX_VALUES} values; take an interval")
    low, high = sorted((numbers[0], numbers[-1]))
    if is_whole:
        return SearchAxis(low=low, high=high, step=numbers.step)
    return SearchAxis(_distinct(override, values), low, high, numbers.step)


def _distinct(override: Override, values: Sequence[str]) -> tuple[str, ...]:
    """Returns the different values, sorted if the axis is shuffled.

    So a continued search has the values in the same order.
    """
    distinct = dict.fromkeys(values)
    return tuple(sorted(distinct) if getattr(override.value, "shuffle", False) else distinct)


def search_settings(
    sweeper: Mapping[str, Any],
    problems: ErrorList,
    jobs_at_a_time: int | None = None,
    halving: int | None = None,
) -> SearchSettings:
    """Parses hydra.sweeper.

    Args:
        sweeper: the section hydra.sweeper.
        problems: receives the problems.
        jobs_at_a_time: of the launcher; replaces a `parallel` that is null.
        halving: sweep.halving; its square replaces a `parallel` that is null, so that the brackets
            are the same on every machine.
    """
    values = {field.name: sweeper.get(field.name) for field in fields(SearchSettings)}
    if values["parallel"] is None:
        values["parallel"] = jobs_at_a_time if halving is None else min(halving**2, MAX_PARALLEL)
    return parse_section(SearchSettings, values, "hydra.sweeper", problems)


def is_search(node: DictConfig) -> bool:
    return plugin_name(node.hydra, "sweeper") == "optuna"


def search_problems(node: DictConfig) -> Iterator[str]:
    """Yields the problems of a search's settings; nothing if the sweeper does not search."""
    if not is_search(node):
        return
    problems = ErrorList()
    settings = search_settings(resolve_section(node, "hydra.sweeper"), problems)
    yield from problems
    halving = resolve_section(node, "sweep.halving")
    parallel = settings.parallel
    if isinstance(halving, int) and parallel is not None and parallel < halving:
        yield (
            f"hydra.sweeper.parallel={parallel}: a bracket of fewer trials than "
            f"sweep.halving={halving} stops none; at least {halving}"
        )
    if resolve_section(node, "resume") == "never":
        yield "resume=never: a search continues its own runs; choose auto, exact or force"
    if resolve_section(node, "sweep.dry_run"):
        yield "sweep.dry_run=true: belongs to a grid; a search makes its jobs as it goes"
    if find_spec("optuna") is None:
        yield "hydra/sweeper=optuna: Optuna is not installed; pip install 'vggexp[search]'"


def plan_search(
    node: DictConfig,
    axes: dict[str, SearchAxis],
    configs: Sequence[Config],
    label_override: str,
) -> SearchPlan:
    """Names a search and chooses its folder.

    Args:
        node: the composed outline of the command.
        axes: the axes by key.
        configs: the configurations of `grid.endpoint_jobs`.
        label_override: of the keys that are no axes.

    Raises:
        ConfigError: hydra.sweep.dir is not a folder's name, or refers to something unknown.
    """
    name = search_name(node.hydra.sweeper, axes, configs)
    at_a_time = planned_jobs_at_a_time(node, configs[0])
    halving = configs[0].sweep.halving
    settings = search_settings(node.hydra.sweeper, ErrorList(), at_a_time, halving)
    trials_at_a_time = settings.parallel or 1
    if plugin_name(node.hydra, "launcher") in HOST_LAUNCHERS:
        trials_at_a_time = min(trials_at_a_time, at_a_time)
    return SearchPlan(
        name=name,
        folder=sweep_folder(node, configs[0], name),
        axes=axes,
        config=configs[0],
        settings=settings,
        jobs_at_a_time=at_a_time,
        trials_at_a_time=trials_at_a_time,
        label_override=label_override,
    )


def sweep_folder(node: DictConfig, config: Config, name: str) -> Path:
    """Returns the folder of the tables of a sweep: hydra.sweep.dir, or below run.root by its name.

    With resume=never, the folder below run.root is one that does not exist.

    Args:
        node: the composed outline of the command.
        config: the first job.
        name: the name of the sweep.

    Raises:
        ConfigError: hydra.sweep.dir is not a folder's name, or refers to something unknown.
    """
    raw = OmegaConf.to_container(node.hydra.sweep, resolve=False)
    assert isinstance(raw, dict)
    typed = raw.get("dir")
    if typed == DEFAULT_FOLDER:
        sweeps = Path(config.run.root) / "sweeps"
        if config.resume == "never":  # each call of the command has new runs
            name = unused_name(sweeps, name)
        return sweeps / name
    try:
        folder = OmegaConf.select(node, "hydra.sweep.dir")
    except OmegaConfBaseException as error:
        problem = compose_error_line(error).removeprefix("hydra.sweep.dir: ")
        if "${hydra:" in str(typed):  # Hydra's resolver knows the keys in a job only
            problem = "write ${hydra.KEY} in place of ${hydra:KEY}"
        raise ConfigError(f"hydra.sweep.dir={typed}: {problem}") from error
    if not isinstance(folder, str) or not folder:
        raise ConfigError(f"hydra.sweep.dir={format_value(typed)}: must be a folder")
    return Path(folder)


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
    contents = set()
    for job in configs:
        keys = identity(to_plain(job))
        contents.add((keys.get("data.sha256", ""), keys.get("train.init_sha256", "")))
    if len(contents) > 1:  # a folder or file that is searched is part of the search by its contents
        parts.append(sorted(contents))
    readable = "-".join(key.lstrip("+").replace("/", ".") for key in axes)
    return f"search-{readable[:MAX_NAME_CHARS]}-{short_hash(parts)}"
