"""Reads the files that Hydra composes: within limits, without an import, the shipped ones once.

Hydra reads every file again for each composition. A command composes three times and a sweep once
for each job, and to build a file's content from YAML takes ten times as long as to copy it.
"""

import copy
from functools import cache
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins import (
    file_config_source,
    importlib_resources_config_source,
    structured_config_source,
)
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf

from vggexp.config import own_files, yaml_limits
from vggexp.errors import ConfigError


# Hydra registers one class for each kind of source, and refuses another name. The processes of
# joblib register Hydra's own classes after these.
class FileConfigSource(file_config_source.FileConfigSource):
    """Reads YAML files of configuration folders within limits."""

    def load_config(self, config_path: str) -> ConfigResult:
        path = Path(self.path, self._normalize_file_name(config_path)).resolve()
        if self.provider == own_files.SHIPPED and path.is_file():
            state = path.stat()
            return copy.deepcopy(_read_shipped(self.path, config_path, path, state.st_mtime_ns))
        result = self.read(config_path, path)
        own_files.complete(self.path, config_path, result.config, result.header["package"])
        return result

    def read(self, config_path: str, path: Path) -> ConfigResult:
        """Reads a file. Raises ConfigError if it is not a configuration."""
        if path.is_file():
            yaml_limits.check_file(path)
        try:
            result = super().load_config(config_path)
        except OSError as error:
            if error.errno is not None:  # OmegaConf's for a file such as `3` has none
                raise
            raise ConfigError(f"{path}: holds no keys; needs lines as key: value") from error
        except (ValueError, LookupError, AttributeError, TypeError) as error:  # as of !!bool x
            raise ConfigError(f"{path}: cannot be read as YAML ({error})") from error
        content: Any = result.config
        is_global = result.header["package"] == "_global_" or "/" not in config_path
        if is_global and OmegaConf.is_dict(content) and content.get("hydra", {}) is None:
            raise ConfigError(f"{path}: hydra=null: a group of keys; leave it out")
        return result


class ImportlibResourcesConfigSource(
    importlib_resources_config_source.ImportlibResourcesConfigSource
):
    """Reads Hydra's own files; a package of another name would be imported."""

    def __init__(self, provider: str, path: str) -> None:
        super().__init__(provider=provider, path=path)
        _reject_import(self, "hydra.conf")

    def load_config(self, config_path: str) -> ConfigResult:
        return copy.deepcopy(_read_packaged(self.provider, self.path, config_path))

    def read(self, config_path: str) -> ConfigResult:
        return super().load_config(config_path)


class StructuredConfigSource(structured_config_source.StructuredConfigSource):
    """Reads the configurations that installed plugins store; imports no module."""

    def __init__(self, provider: str, path: str) -> None:
        super().__init__(provider=provider, path="structured://")
        self.path = path.removeprefix("structured://")
        _reject_import(self, "")


BY_SCHEME = {
    source.scheme(): source
    for source in (FileConfigSource, ImportlibResourcesConfigSource, StructuredConfigSource)
}


def _reject_import(source: Any, allowed: str) -> None:
    if source.path != allowed:
        raise ConfigError(
            f"hydra.searchpath: {source.scheme()}://{source.path}: not allowed, "
            "Hydra would import it; give a folder, as file:///home/me/conf"
        )


@cache
def _read_shipped(folder: str, name: str, path: Path, mtime_ns: int) -> ConfigResult:
    """Reads a file of conf/ once, and again if it has changed since."""
    return FileConfigSource(own_files.SHIPPED, folder).read(name, path)


@cache
def _read_packaged(provider: str, folder: str, name: str) -> ConfigResult:
    """Reads a file of the installed Hydra once."""
    return ImportlibResourcesConfigSource(provider, f"pkg://{folder}").read(name)
