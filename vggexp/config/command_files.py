"""Holds the configuration files of a command: each is read once. Imports no Hydra.

A sweep composes and names its jobs in several processes and over hours. A file that is changed
meanwhile would give the later jobs another configuration, or another folder, than was checked.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from vggexp.config import yaml_limits


@dataclass
class Files:
    """The files of configuration folders, as they were when a command looked for them first."""

    found: dict[str, bool] = field(default_factory=dict)  # by path, whether it is a file
    texts: dict[str, str] = field(default_factory=dict)

    def is_file(self, path: str) -> bool:
        if path not in self.found:
            self.found[path] = os.path.isfile(path)
        return self.found[path]

    def read(self, path: str) -> str:
        """Returns the text of a file. Raises what `yaml_limits.read_checked` raises."""
        if path not in self.texts:
            self.texts[path] = yaml_limits.read_checked(Path(path).resolve())
        return self.texts[path]


_current = Files()


def use_files(files: Files) -> None:
    """Makes all readers of this process use the files of a command."""
    global _current
    _current = files


def current_files() -> Files:
    """Returns the files of the command that this process works for."""
    return _current
