"""malloc keeps the memory of freed tensors for the next step, and returns it at the end."""

import subprocess
import sys

import pytest

ALLOCATE_REPEATEDLY = """
import resource, torch
from vggexp.system.memory import retain_freed_memory, trim_heap

def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident_pages():
    return int(open("/proc/self/statm").read().split()[1])

retain_freed_memory()
faults = []
for _ in range(40):
    before = page_faults()
    torch.ones(1 << 24)
    faults.append(page_faults() - before)
retained = resident_pages()
trim_heap()
print(max(faults[-4:]), retained - resident_pages())  # the heap grows in the first rounds
"""
TENSOR_PAGES = (1 << 26) / 4096


@pytest.mark.process
def test_freed_memory_is_retained_until_it_is_trimmed():
    command = [sys.executable, "-c", ALLOCATE_REPEATEDLY]
    process = subprocess.run(command, capture_output=True, text=True)
    new_pages, trimmed_pages = map(int, process.stdout.split())
    assert new_pages < TENSOR_PAGES / 10, process.stderr
    assert trimmed_pages > TENSOR_PAGES * 0.9, process.stderr
