"""What saves a run holds no more than it has to."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from pipeline.learning.packet import Position
from pipeline.learning.stage import Trainable
from pipeline.runtime import saver as module
from pipeline.runtime.checkpoint_files import CheckpointWriter, newest
from pipeline.runtime.saver import Saver
from pipeline.runtime.topology import Topology
from pipeline.transport.bulk import Bulk
from pipeline.transport.control import Control

STAGE = cast(Trainable, SimpleNamespace(state_dict=lambda: {"0.w": torch.ones(3), "1.w": torch.zeros(2)}))


@pytest.fixture
def saver(tmp_path: Path) -> Iterator[Saver]:
    """Of the only process of a run."""
    with contextlib.closing(Control(HashStore(), 0, 1, 5.0)) as control:
        yield Saver(Bulk(control), Topology.over((2,), 1), tmp_path, 3, lambda _: {})


def test_no_copy_outlives_its_checkpoint(saver: Saver, tmp_path: Path) -> None:
    kept: list[weakref.ref[Tensor]] = []
    copy = module._on_host

    def remembered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        copies = copy(tensors)
        kept.extend(weakref.ref(tensor) for tensor in copies.values())
        return copies

    with patch.object(module, "_on_host", remembered), saver:
        saver.take(Position(1, 1), [STAGE], 0.5)
        deadline = time.monotonic() + 10
        while not saver.idle:
            assert time.monotonic() < deadline, "not saved within the time"
            time.sleep(0.01)
        gc.collect()
        assert [reference() for reference in kept] == [None, None]
    checkpoint, _ = newest(tmp_path)
    assert checkpoint is not None and (checkpoint.at, checkpoint.epoch_s) == (Position(1, 1), 0.5)


def test_one_that_is_never_entered_leaves_no_thread(saver: Saver) -> None:
    assert saver.idle and "saver" not in [thread.name for thread in threading.enumerate()]


def test_what_is_half_written_when_a_run_fails_is_never_seen(saver: Saver, tmp_path: Path) -> None:
    """On a slow disk it was finished later, when another run may have had the folder."""
    writing, failed = threading.Event(), threading.Event()
    add = CheckpointWriter.add

    def slowly(writer: CheckpointWriter, tensors: Mapping[str, Tensor], index: int) -> None:
        writing.set()
        assert failed.wait(60)
        add(writer, tensors, index)

    def fail() -> None:
        with saver:
            saver.take(Position(1, 1), [STAGE], 0.5)
            assert writing.wait(60)
            raise ZeroDivisionError

    with patch.object(CheckpointWriter, "add", slowly):
        with pytest.raises(ZeroDivisionError):
            fail()
        failed.set()
        saver._thread.join(60)
    assert not saver._thread.is_alive() and list(tmp_path.iterdir()) == []
