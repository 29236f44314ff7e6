"""Keeps a configuration from running code: checks all that Hydra reads, imports or instantiates.

Hydra builds its launcher, sweeper, callbacks and loggers from names in the composed `hydra` node,
and imports packages that `hydra.searchpath` names. A file of someone else can set these keys.
`install` makes Hydra compose with `SafeConfigLoader`, so every configuration is checked before
Hydra uses it: in a run, a sweep, a job, and for --help, --cfg, --info and completion.
"""

import copy
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache, cached_property
from importlib import resources
from typing import Any

import hydra._internal.hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vggexp.config import command_files, own_files, sources, yaml_limits
from vggexp.config.device import detect_device
from vggexp.config.overrides import parse_override
from vggexp.errors import ConfigError
from vggexp.formatting import format_value

TARGET = "_" + "target_"  # Hydra's key that names a class
LAUNCHERS = {  # the allowed classes by the name of their file in hydra/launcher
    "basic": "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "local": "hydra_plugins.vggexp_local_launcher.LocalLauncher",
    "joblib": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
    "ray": "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher",
    "submitit_local": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
    "slurm": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
}
SWEEPERS = {
    "basic": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
    "grid": "hydra_plugins.vggexp_grid_sweeper.GridSweeper",
    "optuna": "hydra_plugins.vggexp_optuna_sweeper.OptunaSweeper",
}
MODE_OVERRIDES = {f"hydra.mode={mode.name}": mode for mode in RunMode}  # which Hydra adds itself
RESOLVING = "ConfigError raised while resolving interpolation: "  # OmegaConf's, before our text
CALLBACKS = ("hydra.experimental.callbacks.LogJobReturnCallback",)
PLUGIN_CLASSES = {"launcher": LAUNCHERS, "sweeper": SWEEPERS}

# Keys of launchers that hold commands, options of commands, or addresses of other machines.
# A user may type these keys on the command line. A file may not set them.
COMMAND_KEYS = ("setup", "srun_args", "additional_parameters", "ray")
HARMLESS_COMMAND_KEYS = (  # below them, allowed in files as well
    "additional_parameters.requeue",
    "additional_parameters.mail-type",
    "additional_parameters.mail-user",
    "ray.init.num_cpus",
    "ray.init.num_gpus",
    "ray.remote.num_cpus",
    "ray.remote.num_gpus",
    "ray.remote.max_calls",
)

# Variables that a configuration may set: numbers of threads, devices, and how much a library
# prints. Too many other variables make a program load code or write a file.
SETTABLE_VARIABLES = re.compile(
    r"\w+_NUM_THREADS|OMP_(DYNAMIC|PLACES|PROC_BIND|WAIT_POLICY)|KMP_(AFFINITY|BLOCKTIME)"
    r"|CUDA_(VISIBLE_DEVICES|DEVICE_ORDER|LAUNCH_BLOCKING)|CUBLAS_WORKSPACE_CONFIG"
    r"|NVIDIA_TF32_OVERRIDE|PYTORCH_(CUDA_)?ALLOC_CONF|TORCH_(LOGS|DISTRIBUTED_DEBUG)"
    r"|TORCH_CPP_LOG_LEVEL|(NCCL|GLOO)_(DEBUG|DEBUG_SUBSYS|SOCKET_IFNAME|\w+_DISABLE)"
    r"|VGGEXP_(?!CONF_PATH|TRACEBACK|FAULT)\w+"
)
# Variables that a configuration may read. config.yaml records values, so it may read only those
# that hold no secret: whose machine and folder, which job. VGGEXP_* is for a user's own values.
READABLE_VARIABLES = re.compile(
    r"HOME|USER|LOGNAME|HOSTNAME|PWD|TMPDIR|SCRATCH|WORK|XDG_(CACHE|CONFIG|DATA|STATE)_HOME"
    r"|CUDA_VISIBLE_DEVICES|OMP_NUM_THREADS|VGGEXP_\w+|SLURM_(?!JWT)\w+"
)


def is_readable(variable: str) -> bool:
    """Returns whether a configuration may refer to an environment variable."""
    return READABLE_VARIABLES.fullmatch(variable) is not None


class Moment:
    """What a configuration is made of besides the overrides: files, the time, the environment.

    All jobs of a sweep read the same, whenever and wherever they run.
    """

    def __init__(self) -> None:
        self.time = datetime.now()
        self.variables = {name: text for name, text in os.environ.items() if is_readable(name)}
        self.files = command_files.Files()

    def register(self) -> None:
        """Replaces the resolvers `now` and `oc.env`, and the files that are read."""
        command_files.use_files(self.files)
        OmegaConf.register_new_resolver("now", self._format_time, replace=True)
        OmegaConf.register_new_resolver("oc.env", self._read_variable, replace=True)

    def _format_time(self, pattern: Any = "") -> str:
        return self.time.strftime(str(pattern))

    def _read_variable(self, *arguments: Any) -> Any:
        """Reads only variables that may stand in a record."""
        name = str(arguments[0]) if arguments else ""
        if not is_readable(name):
            raise ConfigError(
                f"oc.env:{name}: not read into a configuration, whose values are recorded; "
                "allowed HOME, USER, TMPDIR, SCRATCH, SLURM_*, VGGEXP_*"
            )
        if name in self.variables:
            return self.variables[name]
        if len(arguments) > 1:
            return None if arguments[1] is None else str(arguments[1])
        raise ConfigError(f"oc.env:{name}: this environment variable is not set")


class SafeConfigLoader(ConfigLoaderImpl):
    """Checks each configuration that it composes.

    Launchers send the loader to their processes, and with it the moment of the command.
    """

    moment = Moment()  # `parse_command` sets that of the command
    _last: tuple[Any, DictConfig] | None = None  # what was composed last, and its sources

    @classmethod
    def begin_command(cls) -> None:
        """Begins a moment of its own for a command."""
        cls.moment = Moment()
        cls.moment.register()

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "moment": self.moment}
        state.pop("_detected_profile", None)  # the other machine may have another device
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        command_files.use_files(self.moment.files)  # a worker of Ray names jobs and composes none

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        own_files.search_first(config_search_path.get_path())
        super().__init__(config_search_path)

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Composes a configuration and checks it.

        Hydra composes a run twice more, for its mode and to run it, and a sweep twice; it gets
        copies of the first.
        """
        self.moment.register()  # Hydra registers a resolver `now` of its own when it starts
        OmegaConf.register_new_resolver("vggexp.device", self._detected_value, replace=True)
        places = [(place.provider, place.path) for place in self.config_search_path.get_path()]
        mode = MODE_OVERRIDES.get(overrides[-1]) if overrides else None
        typed = list(overrides) if mode is None else overrides[:-1]
        source = (self.moment.time, config_name, typed, places)  # a worker has several commands
        if self._last and self._last[0] == source:
            copied = copy.deepcopy(self._last[1])
            if mode is not None:
                copied.hydra.mode = mode
                copied.hydra.overrides.hydra.append(overrides[-1])
            return copied
        node = self._compose(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        _resolve_device(node)
        problems = list(hydra_node_problems(node))
        if problems:
            raise ConfigError(*map(own_files.name_file, problems))
        # Nothing changes vggexp's own composition, and that from which Hydra reads the mode.
        is_unchanged = not from_shell or not validate_sweep_overrides
        if is_unchanged and mode is None:
            SafeConfigLoader._last = (source, node)
        return node

    def _compose(self, *args: Any) -> DictConfig:
        try:
            return super().load_configuration(*args)
        except RecursionError as error:
            files = ", ".join(map(str, own_files.with_defaults()))
            raise ConfigError(
                f"defaults: the files name each other in a circle: {files}"
            ) from error
        except KeyError as error:  # Hydra copies a variable without a look whether it is there
            name = str(error.args[0])
            if name in os.environ or not name.isidentifier():
                raise
            raise ConfigError(f"hydra.job.env_copy={name}: not set in the environment") from error

    def _detected_value(self, key: str) -> Any:
        """Returns a value from the file of the device that `device=auto` means."""
        return self._detected_profile[key]

    @cached_property
    def _detected_profile(self) -> Any:
        file = self.repository.load_config(f"device/{detect_device()}")
        assert file is not None, "a file of each device is shipped"
        return file.config

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: list[str]
    ) -> DictConfig:
        """Composes a job. Its own keys are resolved here: Ray sends them to another process."""
        node = super().load_sweep_config(master_config, sweep_overrides)
        for key in node:
            if key != "hydra":
                section = node[key]
                if OmegaConf.is_config(section):
                    OmegaConf.resolve(section)
                else:
                    node[key] = section
        return node


def _resolve_device(node: DictConfig) -> None:
    """Replaces the references of `device=auto` by the values, so that all who look see values."""
    device = node.get("device")
    if not isinstance(device, DictConfig):
        return
    for key, value in device.items_ex(resolve=False):
        if isinstance(value, str) and value.startswith("${vggexp.device:"):
            device[key] = device[key]


def install() -> None:
    """Makes Hydra compose, read files and read the environment by the rules of this module."""
    Plugins.instance()  # has registered the sources that are replaced here
    SourcesRegistry.instance().types.update(sources.BY_SCHEME)
    hydra._internal.hydra.ConfigLoaderImpl = SafeConfigLoader  # type: ignore[misc, attr-defined]


def plugin_name(hydra_node: Any, section: str) -> str:
    """Returns the kind of the launcher or sweeper, which a user's own file may configure.

    Args:
        hydra_node: the section `hydra` of a checked configuration.
        section: `launcher` or `sweeper`.
    """
    target = hydra_node[section][TARGET]
    return next(name for name, class_ in PLUGIN_CLASSES[section].items() if class_ == target)


def hydra_node_problems(node: DictConfig) -> Iterator[str]:
    """Yields a problem for each key of a composed configuration by which Hydra would run code."""
    for section, classes in PLUGIN_CLASSES.items():
        yield from _plugin_problems(node, section, classes)
    yield from _launcher_file_problems(node)
    values: Any = OmegaConf.to_container(node.hydra, resolve=False)
    if "run" in node:  # not with --hydra-help, which composes Hydra's keys alone
        yield from _folder_problems(values)
    yield from _callback_problems(node)
    for section in ("hydra_logging", "job_logging"):
        yield from _logging_problems(values.get(section), section)
    for section in ("help", "hydra_help"):
        resolve_section(node, f"hydra.{section}")
    yield from _job_problems(node)


def resolve_section(node: DictConfig, key: str) -> Any:
    """Returns a section of Hydra as plain data.

    Raises:
        ConfigError: a value does not resolve. Hydra could not use it either.
    """
    try:
        section = OmegaConf.select(node, key)
        if not OmegaConf.is_config(section):
            return section
        return OmegaConf.to_container(section, resolve=True)
    except (OmegaConfBaseException, ValueError) as error:
        text = str(error).splitlines()[0].removeprefix(RESOLVING)
        raise ConfigError(f"{key}: {text}") from error


def _special_keys(value: Any, path: str) -> Iterator[str]:
    """Yields the path of each key that Hydra's instantiate or a dictConfig treats as code."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if re.fullmatch(r"_\w+_|\(\)|\.", str(key)):
                yield f"{path}.{key}={format_value(item)}"
            yield from _special_keys(item, f"{path}.{key}")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, item in enumerate(value):
            yield from _special_keys(item, f"{path}[{index}]")


def _folder_problems(values: Mapping[str, Any]) -> Iterator[str]:
    """Yields the keys by which Hydra would make folders of its own; `values` is its section."""
    folders = {
        "run.dir": values["run"].get("dir"),
        "output_subdir": values.get("output_subdir"),
        "sweep.subdir": values["sweep"].get("subdir"),
    }
    for key, value in folders.items():
        if value not in (".", None):
            yield (
                f"hydra.{key}={format_value(value)}: not allowed, a run has a folder of its own; "
                "write run.root=FOLDER or run.name=NAME"
            )


def _plugin_problems(node: DictConfig, section: str, classes: Mapping[str, str]) -> Iterator[str]:
    """Yields the problems of hydra.launcher or hydra.sweeper."""
    key = f"hydra.{section}"
    values = resolve_section(node, key)
    if not isinstance(values, dict):
        yield f"{key}={format_value(values)}: choose one with hydra/{section}=NAME"
        return
    name = values.pop(TARGET, None)
    if name not in classes.values():
        allowed = ", ".join(text.rpartition(".")[2] for text in classes.values())
        yield (
            f"{key}.{TARGET}={format_value(name)}: not allowed, a configuration names no code; "
            f"choose one with hydra/{section}=NAME ({allowed})"
        )
    for text in _special_keys(values, key):
        yield f"{text}: not allowed, a configuration names no code"
    for path, value in _leaves(values, key):
        if any(ord(char) < 32 for char in f"{path}{value}"):
            yield f"{path}={value!r}: must be one line"


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yields the path and value of each single value; empty sections and null are left out."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}")
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, path)
    elif value is not None:
        yield path, value


def _launcher_file_problems(node: DictConfig) -> Iterator[str]:
    """Yields each key of a launcher that only the command line may set, and that a file sets."""
    texts: Any = OmegaConf.to_container(node.hydra.overrides.hydra, resolve=False)
    typed = [parse_override(text).key for text in texts]
    launcher = resolve_section(node, "hydra.launcher")
    if not isinstance(launcher, dict):
        return
    for path, value in _leaves(launcher, "hydra.launcher"):
        key = path.removeprefix("hydra.launcher.")
        if key.split(".")[0] not in COMMAND_KEYS or key in HARMLESS_COMMAND_KEYS:
            continue
        if not any(path == text or path.startswith(f"{text}.") for text in typed):
            yield (
                f"{path}={format_value(value)}: not allowed in a file, it can run commands; "
                "write it on the command line"
            )


def _callback_problems(node: DictConfig) -> Iterator[str]:
    callbacks = resolve_section(node, "hydra.callbacks") or {}
    if not isinstance(callbacks, dict):
        yield f"hydra.callbacks={format_value(callbacks)}: must have keys, a name for each"
        return
    for name, callback in callbacks.items():
        if not callback:
            continue
        if not isinstance(callback, dict) or list(callback) != [TARGET]:
            yield f"hydra.callbacks.{name}: not allowed, a configuration names no code"
        elif callback[TARGET] not in CALLBACKS:
            yield (
                f"hydra.callbacks.{name}.{TARGET}={format_value(callback[TARGET])}: not allowed, "
                "a configuration names no code"
            )


@cache
def _logging_files(section: str) -> dict[str, Any]:
    """Returns Hydra's own files of a section for logging: their content by their names."""
    folder = resources.files("hydra.conf.hydra") / section
    return {
        file.name.removesuffix(".yaml"): yaml_limits.load(file.read_text())
        for file in folder.iterdir()
        if file.name.endswith(".yaml")
    }


def _logging_problems(values: Any, section: str) -> Iterator[str]:
    """Yields a problem unless a section for logging.config.dictConfig is a file of Hydra's own.

    Another one could call functions, empty files, or be no valid section.
    """
    shipped = _logging_files(section)
    if values not in shipped.values():
        yield (
            f"hydra.{section}: not allowed to differ from Hydra's own files; "
            f"choose one with hydra/{section}=NAME ({', '.join(sorted(shipped))})"
        )


def _job_problems(node: DictConfig) -> Iterator[str]:
    """Yields the problems of a job's name, its variables and what Hydra logs."""
    job = node.hydra.job
    name = str(resolve_section(node, "hydra.job.name"))
    if not re.fullmatch(r"[\w-]+", name):  # Hydra names its log file so
        yield f"hydra.job.name={format_value(name)}: must be letters, digits, _ and -"
    for variable, value in resolve_section(node, "hydra.job.env_set").items():
        if not SETTABLE_VARIABLES.fullmatch(variable):
            yield (
                f"hydra.job.env_set.{variable}: not allowed, it may change what programs load "
                "or write; set it in the shell"
            )
        elif not isinstance(value, str):
            yield f"hydra.job.env_set.{variable}={format_value(value)}: must be text"
    for variable in job.env_copy:
        if not is_readable(str(variable)):
            yield f"hydra.job.env_copy={variable}: not allowed, multirun.yaml would record it"
    verbose = resolve_section(node, "hydra.verbose")
    names = verbose if isinstance(verbose, list) else [verbose]
    if not all(isinstance(name, bool | str) for name in names):
        yield f"hydra.verbose={format_value(verbose)}: must be true, false or names of loggers"
