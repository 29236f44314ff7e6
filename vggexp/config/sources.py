"""Reads the files that Hydra composes: within limits, without an import, each once in a command.

Hydra reads every file again for each composition; here `command_files` holds the texts. A sweep
composes each job, and to build a file's content from YAML takes ten times as long as to copy it.
"""

import copy
import io
import os
from functools import cache, lru_cache
from typing import Any

from hydra._internal.core_plugins import (
    file_config_source,
    importlib_resources_config_source,
    structured_config_source,
)
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf

from vggexp.config import own_files
from vggexp.config.command_files import current_files
from vggexp.errors import ConfigError

HEADER_CHARS = 512  # of a file, in which Hydra looks for its package


# Hydra registers one class for each kind of source, and refuses another name. The processes of
# joblib register Hydra's own classes after these.
class FileConfigSource(file_config_source.FileConfigSource):
    """Reads YAML files of configuration folders within limits."""

    def is_config(self, config_path: str) -> bool:
        return current_files().is_file(self._full_path(config_path))

    def load_config(self, config_path: str) -> ConfigResult:
        path = self._full_path(config_path)
        text = current_files().read(path)
        result = copy.deepcopy(_parse(self.provider, self.path, config_path, path, text))
        if self.provider != own_files.SHIPPED:
            own_files.complete(self.path, config_path, result.config, result.header["package"])
        return result

    def parse(self, config_path: str, path: str, text: str) -> ConfigResult:
        """Builds the content of a file. Raises ConfigError if it is not a configuration."""
        stream = io.StringIO(text)
        stream.name = os.path.realpath(path)  # type: ignore[misc]  # for errors of syntax
        try:
            header = self._get_header_dict(text[:HEADER_CHARS])
            content: Any = OmegaConf.load(stream)
        except OSError as error:  # OmegaConf's, for a file such as `3`
            raise ConfigError(f"{path}: holds no keys; needs lines as key: value") from error
        except (ValueError, LookupError, AttributeError, TypeError) as error:  # as of !!bool x
            raise ConfigError(f"{path}: cannot be read as YAML ({error})") from error
        is_global = header["package"] == "_global_" or "/" not in config_path
        if is_global and OmegaConf.is_dict(content) and content.get("hydra", {}) is None:
            raise ConfigError(f"{path}: hydra=null: a group of keys; leave it out")
        return ConfigResult(
            provider=self.provider, path=f"file://{self.path}", config=content, header=header
        )

    def _full_path(self, config_path: str) -> str:
        return os.path.join(self.path, self._normalize_file_name(config_path))


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


@lru_cache(maxsize=256)
def _parse(provider: str, folder: str, name: str, path: str, text: str) -> ConfigResult:
    """Builds the content of a file once for each text that the file has."""
    return FileConfigSource(provider, folder).parse(name, path, text)


@cache
def _read_packaged(provider: str, folder: str, name: str) -> ConfigResult:
    """Reads a file of the installed Hydra once."""
    return ImportlibResourcesConfigSource(provider, f"pkg://{folder}").read(name)
