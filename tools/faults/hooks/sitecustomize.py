"""On PYTHONPATH: every Python that starts then has a fault in the job whose seed VGGEXP_FAULT_SEED names."""

import ctypes
import os
import sys

KINDS = {
    "raises": lambda: 1 // 0,
    "exits": lambda: sys.exit(3),
    "killed": lambda: os.kill(os.getpid(), 9),
    "segfault": lambda: ctypes.string_at(0),
    "memory": lambda: bytearray(1 << 62),
}


class Patch:
    """As soon as vggexp.runner.run is imported, training has the fault."""

    def find_spec(self, name, path=None, target=None):
        if name == "vggexp.runner.run":
            sys.meta_path.remove(self)
            install()


def install():
    import vggexp.training.loop

    real = vggexp.train.gradients_that_fit
    kind = os.environ["VGGEXP_FAULT"]
    seed = os.environ["VGGEXP_FAULT_SEED"]

    def faulty(state, plan, *others):
        if plan.seed == int(seed) and state.step == 2:
            KINDS[kind]()
        return real(state, plan, *others)

    vggexp.train.gradients_that_fit = faulty


if "VGGEXP_FAULT" in os.environ:
    sys.meta_path.insert(0, Patch())
