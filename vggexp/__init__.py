"""vggexp: declarative experiments with VGG-style networks."""

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vggexp.api import compose, plan, run
    from vggexp.runner.load import load_run

__version__ = "0.1.0"
__all__ = ["__version__", "compose", "load_run", "plan", "run"]

_MODULES = {
    "compose": "vggexp.api",
    "plan": "vggexp.api",
    "run": "vggexp.api",
    "load_run": "vggexp.runner.load",
}


def __getattr__(name: str) -> Any:
    """Imports a function on first use: `run` and `load_run` import torch, the others Hydra."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'vggexp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__  # without the modules that this file imports for itself


# `python -m vggexp.NAME` puts the working directory first on the import path, and Python imports
# this package while sys.argv[0] is still "-m". Nothing in the working directory is a part of
# vggexp, unless the directory is its checkout: a folder `hydra_plugins`, which Hydra would import
# whole, or a file `yaml.py` may come from someone else.
if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:
    if Path(sys.path[0]).resolve() != Path(__file__).resolve().parents[1]:
        del sys.path[0]
        os.environ["PYTHONSAFEPATH"] = "1"  # the same for processes that a launcher starts
