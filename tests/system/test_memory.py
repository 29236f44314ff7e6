"""Large tensors that come again each step are not made of new small pages, and go back when all is done."""

import subprocess
import sys

MADE_AGAIN = """
import resource, torch
from vggexp.system.memory import give_back, keep_freed
keep_freed()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def resident():
    return int(open("/proc/self/statm").read().split()[1])
counts = []
for _ in range(40):
    before = faults()
    torch.ones(1 << 24)
    counts.append(faults() - before)
kept = resident()
give_back()
print(max(counts[-4:]), kept - resident())  # after some the heap has grown
"""


def test_a_tensor_that_comes_again_is_not_made_of_new_pages():
    ended = subprocess.run([sys.executable, "-c", MADE_AGAIN], capture_output=True, text=True)
    made, gone = map(int, ended.stdout.split())
    pages = (1 << 26) / 4096
    assert made < pages / 10 and gone > pages * 0.9, ended.stderr
