"""Freed memory stays in the process: the next step finds its pages instead of having the system clear new ones."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from tests.support.processes import call

pytestmark = pytest.mark.runs

SCRIPT = """
import resource, sys
from pipeline.runtime.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    print(keep_freed_memory())
import torch
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30):
    torch.ones(16 << 20)
before = faults()
for _ in range(4):
    torch.ones(16 << 20)  # 64 MiB
print(faults() - before)
"""


def test_a_block_that_was_freed_is_used_again(tmp_path: Path) -> None:
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("the C library is not glibc")
    (tmp_path / "trial.py").write_text(SCRIPT, encoding="utf-8")
    kept = call("trial.py", "keep", cwd=tmp_path)
    given_back = call("trial.py", "give back", cwd=tmp_path)
    assert kept.returncode == given_back.returncode == 0, kept.stderr + given_back.stderr
    took, faults = kept.stdout.split()
    assert took == "True" and int(faults) < 100
    assert int(given_back.stdout) > 4 * 16, "without it every block costs page faults, huge pages or not"
