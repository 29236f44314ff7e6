"""Searches the folders in VGGEXP_CONF_PATH first, so that users can override shipped files."""

import os
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class VggexpSearchPath(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        folders = os.environ.get("VGGEXP_CONF_PATH", "").split(os.pathsep)
        for folder in reversed(folders):
            if folder:
                path = f"file://{Path(folder).resolve()}"
                search_path.prepend(provider="vggexp-user", path=path, anchor="main")
