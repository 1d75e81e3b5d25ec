"""Memory that was freed is there for the next step."""

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
from tutelage.allocation import keep_memory
if "keep" in sys.argv:
    keep_memory()
import torch
faults = []
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(25_000_000)  # 100 MB
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))  # a busy system takes pages back now and then
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_large_tensors_are_made_from_memory_that_is_there():
    """24,414 pages of 4 KiB are 100 MB; kept memory is not faulted in again."""
    assert _faults() > 10_000
    assert _faults("keep") < 100


def test_keeping_memory_needs_no_torch():
    script = (
        "import tutelage.allocation, sys; tutelage.allocation.keep_memory(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def _faults(*words: str) -> int:
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    command = [sys.executable, "-c", SCRIPT, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return int(done.stdout)
