"""Checkpoints of `--checkpoint-local`: each process keeps its own blocks on its own disk, and together they are one.

    checkpoints/part-00000/epoch-00003-step-000000450/     of process 0, whose manifest says what the run is of
    checkpoints/part-00002/epoch-00003-step-000000450/     of process 2, on its disk

Every part carries a name of its run that process 0 has drawn, so that parts of two runs are never taken together.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.errors import DataError
from pipeline.learning.packet import Position
from pipeline.runtime.checkpoint_files import Checkpoint, checkpoints_in, remove_all, whole_ones
from pipeline.transport.control import Control
from pipeline.transport.topics import Topic

__all__ = ["LAG", "Parts", "clear", "find_parts", "has_parts", "has_saved", "own_part"]

LAG = 2
"""Positions of which one process may have saved the newer while another still has the older: so many are kept."""

_TOLD = Topic("parts", list)
_CHOSEN = Topic("chosen parts", list)
_MOST = 1_000_000  # blocks
_PART = re.compile(r"part-\d{5,}")

Key = tuple[int, int, str]  # epoch, step and run


@dataclass(frozen=True)
class Parts:
    """The newest checkpoint whose parts the processes of a run have together, as one of them sees it."""

    at: Position
    readers: tuple[int, ...]  # for each block the process that reads it
    mine: Mapping[int, Checkpoint]  # what this one sees, by block
    first: Checkpoint | None = None  # the part that says what the run is of, in process 0
    passed: tuple[str, ...] = field(default=())

    def read(self, index: int) -> dict[str, Tensor]:
        """A block that this process reads. Raises DataError if the file has changed since it was looked for."""
        return self.mine[index].block(index)


def own_part(checkpoints: Path, rank: int, since: Position) -> Path:
    """The folder of a process, without what is of another run, or of a later time than this one begins at.

    Raises OSError where it cannot be written.
    """
    folder = checkpoints / f"part-{rank:05d}"
    for path in (checkpoints, folder):
        path.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            raise OSError(0, "a link, which is not followed", str(path))
    for path in checkpoints_in(folder):
        step = int(path.name.rpartition("-")[2])
        if step > since.step or since == Position():
            shutil.rmtree(path)
    return folder


def clear(checkpoints: Path) -> None:
    """Remove what runs have saved here, in parts or whole, and nothing else that may lie beside it."""
    for folder in _folders(checkpoints):
        remove_all(folder)
    remove_all(checkpoints)


def has_parts(checkpoints: Path) -> bool:
    """Whether a run has kept its checkpoints in parts, of which one at least is here."""
    return any(_folders(checkpoints))


def has_saved(checkpoints: Path) -> bool:
    """Whether a run has saved anything here, in parts or whole; of a link nobody looks."""
    return checkpoints.is_symlink() or bool(checkpoints_in(checkpoints)) or has_parts(checkpoints)


def find_parts(control: Control, checkpoints: Path) -> Parts | None:
    """The newest checkpoint that is whole, if there is one; every process looks on its own disk.

    Raises DataError, in all processes, where a run has come so far that one was whole, and none is any more.
    """
    seen, passed = _seen(checkpoints)
    told = [[*key, sorted(blocks)] for key, blocks in seen.items()]
    _TOLD.publish(control, control.rank, told)

    def choose() -> list[Any] | None:
        if control.rank > 0:
            return None
        parts = _TOLD.gather(control, range(control.world_size))
        chosen = _choose(seen, parts)
        if not chosen and not checkpoints_in(checkpoints):
            _check_lost(parts, checkpoints)
        return chosen

    chosen = _CHOSEN.share(control, control.together("parts", choose))
    if not chosen:
        return None
    epoch, step, run, readers = chosen
    mine = seen.get((epoch, step, run), {})
    return Parts(Position(epoch, step), tuple(readers), mine, _first(mine), tuple(passed))


def _choose(seen: Mapping[Key, Mapping[int, Checkpoint]], told: list[Any]) -> list[Any]:
    """Epoch, step, run and readers; empty where nothing is whole."""
    holders: dict[Key, dict[int, int]] = {}
    for rank, parts in reversed(list(enumerate(told))):  # the lowest process reads
        for epoch, step, run, blocks in parts:
            holders.setdefault((epoch, step, run), {}).update(dict.fromkeys(blocks, rank))
    for key in sorted(holders, key=lambda key: key[:2], reverse=True):
        first = _first(seen.get(key, {}))
        if first is not None and set(holders[key]) == set(range(first.about["blocks"])):
            return [*key, [holders[key][index] for index in range(first.about["blocks"])]]
    return []


def _check_lost(told: list[Any], checkpoints: Path) -> None:
    """Raise DataError where something was whole once: of which a run has saved the next, all processes have saved."""
    blocks: dict[str, dict[tuple[int, int], set[int]]] = {}
    for parts in told:
        for epoch, step, run, held in parts:
            blocks.setdefault(run, {}).setdefault((epoch, step), set()).update(held)
    for positions in blocks.values():
        if len(positions) >= LAG:
            epoch, step = max(positions)
            here = ", ".join(map(str, sorted(positions[epoch, step])))
            raise DataError(
                f"of epoch {epoch}, step {step} of the run in {checkpoints} the disks of these processes hold no more "
                f"than the blocks {here}, and nothing older is whole; bring back the disk or process that is missing, "
                "or begin anew with --overwrite in place of --resume"
            )


def _first(mine: Mapping[int, Checkpoint]) -> Checkpoint | None:
    return next((part for part in mine.values() if "config" in part.about), None)


def _seen(checkpoints: Path) -> tuple[dict[Key, dict[int, Checkpoint]], list[str]]:
    """What is whole on this disk, by block; and what is not."""
    seen: dict[Key, dict[int, Checkpoint]] = {}
    passed: list[str] = []
    for folder in _folders(checkpoints):
        for part in whole_ones(folder, passed, f"{folder.name}/"):
            run, blocks = part.about.get("run"), part.about.get("blocks")
            if isinstance(run, str) and type(blocks) is int and 0 < blocks <= _MOST:
                seen.setdefault((part.at.epoch, part.at.step, run), {}).update(dict.fromkeys(part.held, part))
    return seen, passed


def _folders(checkpoints: Path) -> list[Path]:
    if checkpoints.is_symlink() or not checkpoints.is_dir():
        return []
    return sorted(path for path in checkpoints.iterdir() if _PART.fullmatch(path.name))
