from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vggexp.config.compose import (
    HYDRA_FLAGS,
    Command,
    build_config,
    compose_or_diagnose,
    hydra_session,
    with_typed_values,
)
from vggexp.config.diagnostics import ComposeFn, parse_overrides
from vggexp.config.parse import ErrorList, parse_section
from vggexp.config.schema import Config, Sweep
from vggexp.errors import ConfigError
from vggexp.formatting import format_value
from vggexp.runs.init_source import pin_init_weights
from vggexp.sweep.filter import matches
from vggexp.sweep.grid import cached_compose, endpoint_jobs, expand_grid, hydra_problems
from vggexp.sweep.search_space import (
    SearchPlan,
    is_search,
    plan_search,
    search_axes,
    search_problems,
)

MAX_PROBLEMS = 8  # problems of a sweep that are told; the others are counted


class ComposedJob(NamedTuple):
    overrides: list[str]
    config: Config


def load_command(command: Command) -> Config | list[ComposedJob] | SearchPlan | None:
    """The checked configuration of a single run, the checked jobs of a grid, or a search, whose jobs are made as it
    goes and of which only each axis's ends are checked; None for one of a sweeper not known here. Raises ConfigError
    with every problem, naming the job."""
    with hydra_session(command) as composed:
        parsed, problems = parse_overrides(command.overrides)
        swept = command.arguments.multirun or any(
            override.is_sweep_override() for override in parsed
        )
        outline = _sweep_defining(parsed) if swept else parsed
        node, more, refusal = compose_or_diagnose(
            [override.input_line or "" for override in outline], composed
        )
        if command.arguments.multirun or (node is not None and node.hydra.mode == RunMode.MULTIRUN):
            if node is None or problems:
                raise ConfigError(*([*problems, *more] or [refusal]))
            return _expand_sweep(command.overrides, node, composed)
        if swept:
            node, more, refusal = compose_or_diagnose(
                [override.input_line or "" for override in parsed], composed
            )
        config = pin_init_weights(
            build_config(node, ErrorList([*problems, *more]), refusal, command.overrides)
        )
        _reject_sweep_keys(config.sweep)
        return config


def _reject_sweep_keys(sweep: Sweep) -> None:
    """Raises ConfigError where a single run is given what only a sweep can do."""
    for key, off in (("pairs", ()), ("repeats", 1), ("where", None), ("dry_run", False)):
        if (value := getattr(sweep, key)) != off:
            raise ConfigError(f"sweep.{key}={format_value(value)}: needs -m (a sweep)")


def _sweep_defining(parsed: Sequence[Override]) -> list[Override]:
    """What decides how a sweep is made. The other keys may fit only some of its jobs."""
    last = {
        override.get_key_element(): override
        for override in parsed
        if not override.is_sweep_override()
    }
    return [
        override
        for key, override in last.items()
        if "." not in key or key.startswith(("hydra.", "sweep."))
    ]


def check_composes(command: Command) -> None:
    """Raises ConfigError where Hydra could not even show what the overrides make."""
    with hydra_session(command) as composed:
        parsed, problems = parse_overrides(command.overrides)
        _, more, refusal = compose_or_diagnose(
            [override.input_line or "" for override in parsed], composed
        )
    if problems or refusal:
        load_command(command)  # which tells it best
        raise ConfigError(*([*problems, *more] or [refusal]))


def compose_run(command: Command) -> Config:
    """As `load`, for a door that takes one configuration. Raises ConfigError for a sweep."""
    if any(getattr(command.arguments, flag) for flag in HYDRA_FLAGS if flag != "help"):
        raise ConfigError(
            f"{command.flags[0]}: not a flag of this door; python -m vggexp answers it"
        )
    config = load_command(command)
    if not isinstance(config, Config):
        raise ConfigError("this door takes a single configuration, not a sweep")
    return config


def validate_node(node: DictConfig) -> Config:
    """Reads and checks a job as Hydra hands it over. Raises ConfigError."""
    return pin_init_weights(build_config(node, ErrorList(), "", []))


CHECKED_JOBS: dict[
    tuple[str, ...], Config
] = {}  # the jobs of the sweep that this process has checked, by their overrides


def _expand_sweep(
    overrides: Sequence[str], node: DictConfig, composed: ComposeFn
) -> list[ComposedJob] | SearchPlan | None:
    """Every job of a grid; of a search every choice and end is checked, and the jobs are made as it goes."""
    problems = ErrorList()
    choices = node.hydra.runtime.choices
    grid = choices.get("hydra/sweeper") == "grid"
    sweep = parse_section(Sweep, OmegaConf.to_container(node.sweep), "sweep", problems)
    problems += [] if problems else hydra_problems(node, sweep)
    problems += search_problems(node)
    if problems:
        raise ConfigError(*with_typed_values(problems, overrides))
    loader = GlobalHydra.instance().config_loader()
    params = node.hydra.sweeper.get("params") or {}
    searched = search_axes(loader, overrides, params)[1] if is_search(node) else {}
    combinations = (
        expand_grid(loader, overrides, params, sweep, _first_seed(overrides, node))
        if grid
        else endpoint_jobs(loader, overrides, params, sweep)
    )
    made, told = _check_jobs(combinations, cached_compose(composed))
    if told:
        raise ConfigError(*(_report_problems(told, len(combinations)) if grid else told))
    if sweep.where is not None:
        made = [job for job in made if matches(sweep.where, job.config)]
        if not made:
            raise ConfigError(
                f"sweep.where={sweep.where}: holds for none of {len(combinations)} jobs"
            )
    if searched:
        typed = any(word.startswith("hydra.sweep.dir=") for word in overrides)
        return plan_search(node, searched, [job.config for job in made], typed)
    CHECKED_JOBS.clear()
    CHECKED_JOBS.update({tuple(job.overrides): job.config for job in made})
    return made if grid else None


def _first_seed(overrides: Sequence[str], node: DictConfig) -> int:
    typed = [word.partition("=")[2] for word in overrides if word.startswith("seed=")]
    return int(typed[-1]) if typed and typed[-1].isdecimal() else node.seed


def _check_jobs(
    combinations: Sequence[list[str]], composed: ComposeFn
) -> tuple[list[ComposedJob], dict[str, list[int]]]:
    """The jobs, and each problem with the numbers of the jobs that have it."""
    made = []
    told = dict[str, list[int]]()
    for number, combination in enumerate(combinations, 1):
        try:
            config = pin_init_weights(
                build_config(*compose_or_diagnose(combination, composed), combination)
            )
            made.append(ComposedJob(combination, config))
            if config.sweep.objective.startswith("val/") and not config.data.val_fraction:
                raise ConfigError(
                    f"sweep.objective={config.sweep.objective}: needs a validation split, but data.val_fraction=0; "
                    "choose test/accuracy or train/accuracy"
                )
        except ConfigError as error:
            for problem in error.problems:
                told.setdefault(problem, []).append(number)
    return made, told


def _report_problems(problems: dict[str, list[int]], count: int) -> Iterator[str]:
    """Each problem with the first job that has it, or alone where all have it."""
    for problem, numbers in list(problems.items())[:MAX_PROBLEMS]:
        yield problem if len(numbers) == count else f"sweep job {numbers[0]} of {count}: {problem}"
    if len(problems) > MAX_PROBLEMS:
        yield f"and {len(problems) - MAX_PROBLEMS} more"
