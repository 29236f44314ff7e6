"""Injects a fault into one job of a sweep.

The folder of this file is on PYTHONPATH. So every Python process imports this file when it starts.
The job with the seed VGGEXP_FAULT_SEED has the fault VGGEXP_FAULT in its third step.
"""

import ctypes
import os
import sys

FAULTS = {
    "raises": lambda: 1 // 0,
    "exits": lambda: sys.exit(3),
    "killed": lambda: os.kill(os.getpid(), 9),
    "segfault": lambda: ctypes.string_at(0),
    "memory": lambda: bytearray(1 << 62),
}


class InstallOnImport:
    """Installs the fault when vggexp.runner.run is imported."""

    def find_spec(self, name, path=None, target=None):
        if name == "vggexp.runner.run":
            sys.meta_path.remove(self)
            install()


def install():
    """Replaces the training step. Raises AttributeError if the function has another name."""
    from vggexp.training import loop as training_loop

    original = training_loop.forward_backward_with_oom_retry
    fault = FAULTS[os.environ["VGGEXP_FAULT"]]
    seed = int(os.environ["VGGEXP_FAULT_SEED"])

    def faulty(state, batch, loop):
        if loop.settings.seed == seed and state.step == 2:
            fault()
        return original(state, batch, loop)

    training_loop.forward_backward_with_oom_retry = faulty


if "VGGEXP_FAULT" in os.environ:
    sys.meta_path.insert(0, InstallOnImport())
