"""Memory of a host and of its control groups."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.runtime.memory import host_memory, memory_of


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "5000000\n"}, 5_000_000),
        ("4:memory:/a\n2:cpu:/b\n", {"memory/a/memory.limit_in_bytes": "6000000\n"}, 6_000_000),
        ("0::/a\n", {"a/memory.max": "n\xf6\n", "memory.max": "7000000\n"}, 7_000_000),
        ("nonsense\n0::/\n", {"memory.max": "8000000\n"}, 8_000_000),
    ],
)
def test_a_control_groups_limit_counts(tmp_path: Path, groups: str, files: dict[str, str], limit: int) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert host_memory(tmp_path) == limit


def test_without_a_limit_it_is_the_hosts() -> None:
    whole = host_memory(Path("/nowhere"))
    assert whole > 1 << 28
    assert memory_of(torch.device("cpu"), 1, 4) == (host_memory(), "this machine")
    assert memory_of(torch.device("cpu"), 3, 4) == (3 * host_memory(), "3 machines like this one together")
