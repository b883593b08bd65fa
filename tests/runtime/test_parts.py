"""Checkpoints in parts, on the disks of several processes: one, if they are whole together."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from pipeline.errors import DataError
from pipeline.learning.packet import Position
from pipeline.runtime.checkpoint_files import CheckpointWriter, checkpoints_in
from pipeline.runtime.parts import Parts, find_parts, has_parts, own_part
from pipeline.transport.control import Control
from tests.support.sessions import all_at_once

FIRST, SECOND = Position(1, 4), Position(2, 6)


def keep(disk: Path, rank: int, at: Position, blocks: list[int], run: str = "a", of: int = 3) -> Path:
    """What process `rank` writes: of its blocks, each a number; process 0 says what the run is of, too."""
    folder = disk / f"part-{rank:05d}"
    writer = CheckpointWriter(folder, at)
    for index in blocks:
        writer.add({f"{index}.w": torch.tensor(float(10 * at.step + index))}, index)
    return writer.finish(at, 0.0, {"run": run, "blocks": of} | ({"config": "x"} if rank == 0 else {}))


def found(*disks: Path) -> list[Parts | None]:
    """What processes with these disks find."""
    store = HashStore()
    controls = [Control(store, rank, len(disks), timeout_s=10) for rank in range(len(disks))]
    told: dict[int, Parts | None] = {}

    def look(control: Control, disk: Path) -> Callable[[], None]:
        def act() -> None:
            told[control.rank] = find_parts(control, disk)

        return act

    try:
        all_at_once([look(control, disk) for control, disk in zip(controls, disks, strict=True)])
    finally:
        for control in controls:
            control.close()
    return [told[rank] for rank in range(len(disks))]


@pytest.fixture
def disks(tmp_path: Path) -> list[Path]:
    """Of three processes; the last but one holds nothing of the run."""
    made = [tmp_path / str(rank) for rank in range(3)]
    for at in (FIRST, SECOND):
        keep(made[0], 0, at, [0])
        keep(made[2], 2, at, [1, 2])
    made[1].mkdir()
    return made


def test_each_block_is_read_where_it_lies(disks: list[Path]) -> None:
    parts = found(*disks)
    assert all(one is not None and one.at == SECOND and one.readers == (0, 2, 2) for one in parts)
    zero, _, two = parts
    assert zero is not None and two is not None
    assert zero.first is not None and zero.first.about["config"] == "x" and two.first is None
    assert zero.read(0)["0.w"] == 60 and two.read(2)["2.w"] == 62


def test_the_newest_that_is_whole_is_taken(disks: list[Path]) -> None:
    (checkpoints_in(disks[2] / "part-00002")[0] / "block-00001.safetensors").write_bytes(b"")
    zero, _, two = found(*disks)
    assert zero is not None and two is not None and zero.at == two.at == FIRST
    assert two.passed == (
        "checkpoint part-00002/epoch-00002-step-000000006 is damaged (block-00001.safetensors has 0 bytes, not 68): "
        "passed over",
    )


def test_one_disk_that_all_share_is_read_by_the_first(disks: list[Path]) -> None:
    keep(disks[0], 2, SECOND, [1, 2])
    zero, one = found(disks[0], disks[0])
    assert zero is not None and one is not None and zero.readers == one.readers == (0, 0, 0)


def lose_the_first(disks: list[Path]) -> None:
    for path in checkpoints_in(disks[0] / "part-00000"):
        (path / "manifest.json").unlink()


def lose_a_block(disks: list[Path]) -> None:
    keep(disks[0], 0, FIRST, [0], of=4)
    keep(disks[0], 0, SECOND, [0], of=4)


def take_another_run(disks: list[Path]) -> None:
    for at in (FIRST, SECOND):
        keep(disks[2], 2, at, [1, 2], run="b")


def count_too_many(disks: list[Path]) -> None:
    for at in (FIRST, SECOND):
        keep(disks[0], 0, at, [0], of=10**12)


HARMS = [lose_the_first, lose_a_block, take_another_run, count_too_many]


@pytest.mark.parametrize("harm", HARMS)
def test_what_was_whole_and_is_not_any_more_is_told(disks: list[Path], harm: Callable[[list[Path]], None]) -> None:
    """A run that would begin anew would remove what is left."""
    harm(disks)
    told = r"^of epoch 2, step 6 of the run in .* the disks of these processes hold no more than the blocks [0-2, ]+, "
    with pytest.raises(DataError, match=told):
        found(*disks)
    with pytest.raises(DataError, match=r"or begin anew with --overwrite in place of --resume$"):
        found(disks[1], disks[2])
    one = checkpoints_in(disks[2] / "part-00002")[0]
    shutil.copytree(one, disks[0] / one.name)  # as process 0 saves a run for all
    assert found(*disks) == [None] * 3


@pytest.mark.parametrize("harm", HARMS)
def test_what_never_was_whole_is_none(disks: list[Path], harm: Callable[[list[Path]], None]) -> None:
    """Of the first checkpoint one process may be done when another one dies."""
    harm(disks)
    for disk in disks:
        for part in disk.iterdir():
            shutil.rmtree(checkpoints_in(part)[0])
    assert found(*disks) == [None] * 3


def test_parts_behind_links_are_none(disks: list[Path], tmp_path: Path) -> None:
    assert has_parts(disks[0]) and not has_parts(disks[1])
    (tmp_path / "linked").symlink_to(disks[0])
    assert not has_parts(tmp_path / "linked") and not has_parts(tmp_path / "nowhere")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "part-00000").symlink_to(disks[0] / "part-00000")
    assert found(tmp_path / "x") == [None]
    with pytest.raises(OSError, match="a link, which is not followed"):
        own_part(tmp_path / "linked", 0, Position())
    with pytest.raises(OSError, match="a link, which is not followed"):
        own_part(tmp_path / "x", 0, Position())


def test_a_process_leaves_nothing_of_another_run_or_of_a_later_time(disks: list[Path]) -> None:
    folder = own_part(disks[2], 2, FIRST)
    assert [path.name for path in checkpoints_in(folder)] == ["epoch-00001-step-000000004"]
    assert checkpoints_in(own_part(disks[2], 2, Position())) == []
