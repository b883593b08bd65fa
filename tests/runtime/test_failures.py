"""What fails in one process is one line in all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from pipeline.errors import StageFailure
from pipeline.runtime.failures import failures_told
from pipeline.transport.control import Control


@pytest.fixture
def control() -> Iterator[Control]:
    made = Control(HashStore(), 0, 1, timeout_s=5)
    yield made
    made.close()


def test_a_network_that_torch_cannot_use_is_told_with_its_settings(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It used to be raised as torch's own error, with a traceback."""
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "nosuch0")
    message = (
        r"^process 0 cannot reach the others \(no socket interface found, NCCL_SOCKET_IFNAME is 'nosuch0'\); look"
    )
    with pytest.raises(StageFailure, match=message), failures_told(control):
        raise dist.DistBackendError("no socket interface found\nLast error: ...")
    with pytest.raises(StageFailure, match=message):
        control.raise_if_failed()


def test_a_bug_is_raised_as_it_is_and_told_to_the_others(control: Control) -> None:
    with pytest.raises(KeyError, match="name"), failures_told(control):
        raise KeyError("name")
    with pytest.raises(StageFailure, match=r"^process 0 failed: KeyError: 'name'$"):
        control.raise_if_failed()
