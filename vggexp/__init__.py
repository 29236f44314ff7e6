"""vggexp: declarative experiments with VGG-style networks."""

import os
import sys
from pathlib import Path
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_run"]


def __getattr__(name: str) -> Any:
    """Imports load_run, and with it torch, on first use."""
    if name == "load_run":
        from vggexp.runner.load import load_run

        return load_run
    raise AttributeError(f"module 'vggexp' has no attribute {name!r}")


# `python -m vggexp.NAME` puts the working directory first on the import path, and Python imports
# this package while sys.argv[0] is still "-m". Nothing in the working directory is a part of
# vggexp, unless the directory is its checkout: a folder `hydra_plugins`, which Hydra would import
# whole, or a file `yaml.py` may come from someone else.
if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:
    if Path(sys.path[0]).resolve() != Path(__file__).resolve().parents[1]:
        del sys.path[0]
        os.environ["PYTHONSAFEPATH"] = "1"  # the same for processes that a launcher starts
