"""Large tensors that come again each step are not made of new small pages."""

import os
import subprocess
import sys

import pytest

from vggexp.processor import ASKS

MADE_AGAIN = """
from vggexp import processor
processor.ask_for_huge_pages()
import resource, torch
from vggexp.memory import keep_freed
keep_freed()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
counts = []
for _ in range(40):
    before = faults()
    torch.ones(1 << 24)
    counts.append(faults() - before)
print(max(counts[-4:]))  # after some the heap has grown
"""


@pytest.mark.parametrize("asks", ["0", "1"])
def test_a_tensor_that_comes_again_is_not_made_of_new_pages(asks):
    ended = subprocess.run([sys.executable, "-c", MADE_AGAIN], env={**os.environ, ASKS: asks}, capture_output=True)
    assert int(ended.stdout) < (1 << 26) / 4096 / 10, ended.stderr  # a tenth of what 4 KiB pages would be
