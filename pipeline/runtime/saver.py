"""Checkpoints of a run under way: copied by the thread that trains, brought together and written by another.

    stage 0   ... train  SNAPSHOT  train ...      copy ─┐
    stage 1   ...    train  SNAPSHOT  train ...   copy ─┼─> process 0: a file a block, then the manifest
    stage 2   ...       train  SNAPSHOT ...       copy ─┘

The packet rides the queues, so that all copies are of one position. No shared disk is needed: process 0 alone writes.
With `--checkpoint-local` each process writes its own blocks, as `parts` has it, and nothing is sent.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from pipeline.errors import first_line
from pipeline.learning.packet import Position
from pipeline.learning.stage import Trainable
from pipeline.runtime.checkpoint_files import CheckpointWriter, prune
from pipeline.runtime.failures import failures_told
from pipeline.runtime.parts import LAG
from pipeline.runtime.topology import Topology
from pipeline.transport.bulk import Bulk
from pipeline.transport.watch import watching

__all__ = ["Saved", "Saver", "by_block"]

_REFRESH_S = 0.1


@dataclass(frozen=True)
class Saved:
    """What a checkpoint took."""

    at: Position
    path: Path
    bytes: int
    stalled_s: float  # of the thread that trains, in process 0
    seconds: float  # from the copy to the last file


@dataclass(frozen=True)
class _Job:
    at: Position
    blocks: dict[int, dict[str, Tensor]]  # copies; each goes as soon as it is written
    epoch_s: float  # training time of the epoch so far
    stalled_s: float


class Saver:
    """Saves the stages of a run whenever it is shown a snapshot; every process has one.

    Args:
        bulk: of this saver alone, since it is used by a thread of its own.
        topology: whose blocks come from where.
        folder: of the checkpoints, in process 0; in all, each its own, with a `run`.
        keep: how many of them stay.
        about: what the manifest says beside files and position; waited for until it is known.
        run: the name of a run whose processes write their own blocks; empty where process 0 writes all.
    """

    def __init__(
        self,
        bulk: Bulk,
        topology: Topology,
        folder: Path | None,
        keep: int,
        about: Callable[[Position], Mapping[str, Any] | None],
        run: str = "",
    ) -> None:
        self.bulk, self.topology, self.folder, self.keep, self.about = bulk, topology, folder, keep, about
        self.run = run
        self.saved: list[Saved] = []
        self._jobs: queue.Queue[_Job | None] = queue.Queue(1)
        self._busy = threading.Event()
        self._broken: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="saver", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Left well, everything has been saved; left by an error, what is half written is never seen."""
        if kind is not None:
            self.cancel()
            return
        with failures_told(self.bulk.control):
            self.finish()
        self.bulk.close()

    @property
    def idle(self) -> bool:
        """Whether a snapshot taken now would not wait for the one before."""
        return not self._busy.is_set()

    def take(self, at: Position, stages: Sequence[Trainable], epoch_s: float) -> None:
        """Copy the stages' states; waits while the checkpoint before is still being written.

        `epoch_s` is the training time of the epoch so far, from which a run that goes on counts.
        """
        start = time.perf_counter()
        while self._busy.is_set() and self._thread.is_alive():
            time.sleep(_REFRESH_S / 10)
        self.check()
        blocks = by_block({name: copy for stage in stages for name, copy in _on_host(stage.state_dict()).items()})
        self._busy.set()
        self._jobs.put(_Job(at, blocks, epoch_s, time.perf_counter() - start))

    def check(self) -> None:
        """Raise what a save has failed with."""
        if self._broken is not None:
            raise self._broken

    def finish(self) -> None:
        """Wait until all is saved. Raises StageFailure if that fails, or if a process is lost meanwhile."""
        self._jobs.put(None)
        with watching(self.bulk.control) as watch:
            while self._thread.is_alive():
                self._thread.join(_REFRESH_S)
                watch.check()
        self.check()

    def cancel(self) -> None:
        """Stop after a failure; what is half written is never seen."""
        self._broken = self._broken or RuntimeError("cancelled")
        self.bulk.close()
        try:
            self._jobs.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(1.0)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None and self._broken is None:
            try:
                self._save(job)
            except BaseException as error:  # raised again in the main thread
                self._broken = self._broken or self._told(job.at, error)
                return
            finally:
                self._busy.clear()

    def _told(self, at: Position, error: BaseException) -> BaseException:
        if isinstance(error, OSError):
            control = self.bulk.control
            return control.fail(
                f"{control.describe(control.rank)} cannot write the checkpoint of epoch {at.epoch}, step {at.step} "
                f"to {self.folder} ({error.strerror or first_line(error)}); make room, then go on with --resume"
            )
        return error

    def _save(self, job: _Job) -> None:
        start, at, mine = time.perf_counter(), job.at, job.blocks
        if self.folder is None:
            for index in sorted(mine):
                self.bulk.send_named(0, f"{at.epoch}/{at.step}/{index}", mine.pop(index))
            return
        writer = CheckpointWriter(self.folder, at)
        try:
            for index, owner in sorted(self.topology.owners().items()):
                self.check()  # a run that has failed may have given its folder to another one
                if index in mine:
                    writer.add(mine.pop(index), index)
                elif not self.run:
                    writer.add(self.bulk.receive_named(owner, f"{at.epoch}/{at.step}/{index}"), index)
            about = self._manifest(at)
            self.check()
            path = writer.finish(at, job.epoch_s, about)
        finally:
            writer.close()
        prune(path, max(self.keep, LAG) if self.run else self.keep)
        self.saved.append(Saved(at, path, writer.bytes, job.stalled_s, time.perf_counter() - start))

    def _manifest(self, at: Position) -> dict[str, Any]:
        """What is told beside files and position: by process 0 what the run is, of a part what it is of."""
        about = {"run": self.run, "blocks": len(self.topology.owners())} if self.run else {}
        return about | dict(self._about(at) if self.bulk.control.rank == 0 else {})

    def _about(self, at: Position) -> Mapping[str, Any]:
        """The epochs before this position are told by the stages, but some take their time to arrive."""
        deadline = time.monotonic() + self.bulk.control.timeout_s
        while True:
            about = self.about(at)
            if about is not None:
                return about
            self.bulk.control.raise_if_failed()
            if time.monotonic() > deadline:
                raise TimeoutError(f"no report of the epochs before {at}")
            time.sleep(_REFRESH_S)


def _on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in the host's memory, in a memory format of their own."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def by_block(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """A stage's state, block by block."""
    blocks: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        blocks.setdefault(int(name.partition(".")[0]), {})[name] = tensor
    return blocks
