"""Command `vggexp.plan`: prints what a configuration costs. Needs no torch."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

import vggexp
from vggexp import cli
from vggexp.config import compose
from vggexp.cost_plan import cost_table, plan_costs
from vggexp.sweep import expand

DESCRIPTION = """Prints shapes, parameters, multiply-adds, memory and disk of a configuration.

    python -m vggexp.plan [overrides] [--json]

Takes the overrides of a run. Builds and writes nothing, and reads no image. Of the hardware only
the processor and its memory count. The memory is an estimate for one process. On a GPU it is that
of the tensors of a training step; CUDA itself and workspaces come in addition. On a CPU it is all
that is resident: also scratch memory and holes in the heap (0.3 of the tensors), the images and the
workers, and the libraries. It was between 3 % below and 13 % above what was measured. The disk is
that of the checkpoints; predictions, logs and images for TensorBoard come in addition. The time is
that of the epochs and the test, or of the epochs up to run.until, without the start. It comes from
finished runs in run.root on the same host, with the same device, number format and threads. The
images of a folder are not counted, so there the time is unknown; sweep.dry_run=true counts them.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code. Prints an expected error as one line on stderr."""
    return cli.run(lambda: _plan(sys.argv[1:] if argv is None else argv))


def _plan(argv: Sequence[str]) -> str:
    command = compose.parse_command(argv, "--json")
    if command.arguments.help:
        return DESCRIPTION
    plan = plan_costs(expand.compose_run(command))
    cli.note_replaced_files()
    if command.arguments.json:
        return json.dumps(asdict(plan))
    return cost_table(plan)


# The import of this module has made `vggexp.plan` the name of its package. In a process that uses
# the package from Python, `vggexp.plan` is the function.
vars(vggexp).pop("plan", None)

if __name__ == "__main__":
    sys.exit(main())
