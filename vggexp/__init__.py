"""vggexp: declarative experiments with VGG-style networks."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_run"]


def __getattr__(name: str) -> Any:
    """Imports load_run, and with it torch, on first use."""
    if name == "load_run":
        from vggexp.runner.load import load_run

        return load_run
    raise AttributeError(f"module 'vggexp' has no attribute {name!r}")
