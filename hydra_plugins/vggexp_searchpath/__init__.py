"""Configuration folders named in VGGEXP_CONF_PATH stand before the shipped ones, so that users can override them."""

import os
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class VggexpSearchPath(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        folders = os.environ.get("VGGEXP_CONF_PATH", "").split(os.pathsep)
        for folder in reversed([folder for folder in folders if folder]):
            search_path.prepend(
                provider="vggexp-user", path=f"file://{Path(folder).resolve()}", anchor="main"
            )
