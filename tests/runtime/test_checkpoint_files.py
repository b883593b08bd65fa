"""Checkpoints on disk: complete or ignored."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.errors import DataError
from pipeline.learning.packet import Position
from pipeline.runtime.checkpoint_files import CheckpointWriter, checkpoints_in, newest, prune

FIRST, SECOND = Position(1, 4), Position(2, 6)


def state(number: float) -> list[dict[str, Tensor]]:
    """Of two blocks, one with an image's memory format, a tensor of no axes, and one that is there twice."""
    maps = torch.full((2, 3, 2, 2), number).contiguous(memory_format=torch.channels_last)
    return [{"0.w": maps, "0.step": torch.tensor(number)}, {"1.a": maps[0, 0], "1.b": maps[0, 0]}]


def written(folder: Path, at: Position, number: float = 1.0) -> Path:
    writer = CheckpointWriter(folder, at)
    for index, block in enumerate(state(number)):
        writer.add(block, index)
    return writer.finish(at, 1.5 * number, {"note": number})


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    written(tmp_path, FIRST, 1.0)
    written(tmp_path, SECOND, 2.0)
    checkpoint, passed = newest(tmp_path)
    assert checkpoint is not None and passed == []
    assert (checkpoint.at, checkpoint.about["note"], checkpoint.held) == (SECOND, 2.0, [0, 1])
    assert checkpoint.epoch_s == 3.0
    assert replace(checkpoint, about={}).epoch_s == 0.0, "as one of an earlier version"
    for index, block in enumerate(state(2.0)):
        found = checkpoint.block(index)
        assert found.keys() == block.keys()
        assert all(torch.equal(found[name], block[name]) for name in block)


def test_nothing_is_seen_before_it_is_finished(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, FIRST)
    writer.add(state(1.0)[0], 0)
    assert newest(tmp_path) == (None, [])
    writer.close()
    assert list(tmp_path.iterdir()) == []
    assert newest(tmp_path / "no such folder") == (None, [])


def test_a_position_is_written_again_after_a_crash(tmp_path: Path) -> None:
    CheckpointWriter(tmp_path, FIRST).add(state(1.0)[0], 0)  # and then the process died
    written(tmp_path, FIRST, 2.0)
    written(tmp_path, FIRST, 3.0)
    checkpoint, _ = newest(tmp_path)
    assert checkpoint is not None and checkpoint.about["note"] == 3.0
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_dead_process_has_left_half_written_goes_with_the_next_one(tmp_path: Path) -> None:
    """A run that was killed goes on to other positions, and each kill left a folder as large as a checkpoint."""
    CheckpointWriter(tmp_path, FIRST).add(state(1.0)[0], 0)
    (tmp_path / ".mine.partial").mkdir()
    there = written(tmp_path, SECOND)
    assert {path.name for path in tmp_path.iterdir()} == {there.name, ".mine.partial"}


def test_the_newest_are_kept(tmp_path: Path) -> None:
    last = [written(tmp_path, Position(epoch, epoch)) for epoch in (1, 2, 10, 100_000)][-1]
    prune(last, 2)
    assert [path.name for path in checkpoints_in(tmp_path)] == [
        *("epoch-100000-step-000100000", "epoch-00010-step-000000010")
    ]


def test_one_that_is_gone_by_now_takes_no_other_with_it(tmp_path: Path) -> None:
    last = [written(tmp_path, Position(epoch, epoch)) for epoch in (1, 2, 3)][-1]
    shutil.rmtree(last)
    prune(last, 1)
    assert len(checkpoints_in(tmp_path)) == 2


def test_damaged_ones_of_later_positions_cost_a_run_that_begins_before_them_nothing(tmp_path: Path) -> None:
    for epoch in (4, 5, 6):
        (written(tmp_path, Position(epoch, epoch)) / "manifest.json").write_text("{}")
    kept = []
    for epoch in range(1, 8):
        prune(written(tmp_path, Position(epoch, epoch)), 2)
        checkpoint, _ = newest(tmp_path)
        assert checkpoint is not None and checkpoint.at == Position(epoch, epoch)
        kept.append([int(path.name[6:11]) for path in checkpoints_in(tmp_path)])
    assert kept == [[6, 5, 4, 1], [6, 5, 4, 2, 1], [6, 5, 4, 3, 2], [6, 5, 4, 3], [6, 5, 4], [6, 5], [7, 6]]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def link(path: Path) -> None:
    there = path.rename(path.with_suffix(".moved"))
    path.symlink_to(there)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("damage", [cut, flip, link, pipe, Path.unlink])
@pytest.mark.parametrize("name", ["block-00001.safetensors", "manifest.json", "manifest.sha256"])
def test_a_damaged_one_is_passed_over_for_the_one_before(
    name: str, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    written(tmp_path, FIRST, 1.0)
    damage(written(tmp_path, SECOND, 2.0) / name)
    checkpoint, passed = newest(tmp_path)
    assert checkpoint is not None and checkpoint.at == FIRST
    (why,) = passed
    assert why.startswith("checkpoint epoch-00002-step-000000006 is damaged (") and why.endswith("): passed over")
    assert name.partition(".")[0] in why


def test_a_file_that_changes_after_the_look_is_told(tmp_path: Path) -> None:
    flipped = written(tmp_path, FIRST) / "block-00000.safetensors"
    checkpoint, _ = newest(tmp_path)
    flip(flipped)
    assert checkpoint is not None
    with pytest.raises(DataError, match=r"is damaged \(block-00000.safetensors has another hash"):
        checkpoint.block(0)


def test_checkpoints_behind_a_link_are_neither_read_nor_written(tmp_path: Path) -> None:
    written(tmp_path / "elsewhere", FIRST)
    (tmp_path / "linked").symlink_to("elsewhere")
    assert newest(tmp_path / "linked") == (None, [])
    with pytest.raises(OSError, match="a link, which is not followed"):
        CheckpointWriter(tmp_path / "linked", SECOND)


def test_a_linked_checkpoint_is_none(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    there = written(tmp_path / "other", FIRST)
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / there.name).symlink_to(there)
    assert newest(folder) == (None, [])


ENTRIES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
)
FILES = st.lists(st.fixed_dictionaries({"name": st.text(max_size=9), "bytes": ENTRIES, "sha256": ENTRIES}), max_size=3)


@pytest.mark.fuzz
@settings(max_examples=int(os.environ.get("FUZZ", "200")), deadline=None, derandomize=True, database=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.just(b"[" * 100_000),
        st.fixed_dictionaries(
            {"schema": st.just(1) | ENTRIES, "epoch": st.just(1) | ENTRIES, "step": st.just(4) | ENTRIES},
            optional={"files": FILES | ENTRIES, "more": ENTRIES},
        ).map(lambda manifest: json.dumps(manifest).encode()),
    )
)
def test_no_manifest_makes_the_reader_fail(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    path = folder / "epoch-00001-step-000000004"
    path.mkdir(parents=True, exist_ok=True)
    (path / "manifest.json").write_bytes(data)
    (path / "manifest.sha256").write_text(f"{hashlib.sha256(data).hexdigest()}  manifest.json\n")
    checkpoint, passed = newest(folder)
    assert checkpoint is None and len(passed) == 1
