"""What process 0 keeps of a run so that it can go on: what a checkpoint says beside the state, and its reading."""

from __future__ import annotations

import platform
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipeline.config.resume import AUTO, check_resumable
from pipeline.config.schema import RunConfig, TrainConfig
from pipeline.config.toml import from_toml, to_toml
from pipeline.errors import ConfigError, DataError
from pipeline.learning.packet import Position
from pipeline.learning.stage import Stage
from pipeline.report.records import EpochRecord
from pipeline.report.run_folder import RunFolder
from pipeline.runtime.agreement import Sizes
from pipeline.runtime.checkpoint_files import Checkpoint
from pipeline.runtime.parts import Parts, find_parts, own_part
from pipeline.runtime.resume import checkpoint_of, load_stages, load_weights, weights_of
from pipeline.runtime.saver import Saver
from pipeline.runtime.topology import Topology
from pipeline.transport.bulk import Bulk
from pipeline.transport.control import Control
from pipeline.transport.topics import Topic, decoded

__all__ = ["Beginning", "Keeping", "begin", "load", "look_for_parts", "saver_of"]

_START = Topic("start", list)
_SAVES = Topic("saves", str)
_RUN = Topic("run", str)
_SOURCE = Topic("source", str)


@dataclass(frozen=True)
class Beginning:
    """Where a run begins."""

    folder: RunFolder | None = None
    checkpoint: Checkpoint | None = None  # to go on from
    notes: tuple[str, ...] = ()
    parts: Parts | None = None  # which the checkpoint is in, in every process


def look_for_parts(control: Control, output: str | None, resume: str | None) -> Parts | None:
    """The newest whole checkpoint that `--checkpoint-local` has left where process 0 will look, if there is one.

    Every process calls it, process 0 with what it has been asked for, and looks on its own disk.

    Raises as `find_parts`.
    """
    source = output if resume == AUTO else resume
    mine = "" if source is None else str(Path(source, "checkpoints"))
    checkpoints_of_all = _SOURCE.share(control, mine if control.rank == 0 else None)
    return find_parts(control, Path(checkpoints_of_all)) if checkpoints_of_all else None


def begin(
    output: str | None, *, overwrite: bool, resume: str | None, renames: bool = False, parts: Parts | None = None
) -> Beginning:
    """Open the run folder, new or to go on in, and find the checkpoint to go on from, of which `parts` may be one.

    With `renames` a name that is taken is followed by a number.

    Raises:
        ConfigError: a folder that holds another run, or cannot be written.
        DataError: no complete checkpoint where one was named.
    """
    if resume is None and output is not None and renames and not overwrite:
        return Beginning(_first_free(output))
    if resume is None:
        return Beginning(None if output is None else RunFolder(output, overwrite=overwrite))
    if resume == AUTO and (output is None or renames):  # a new name has nothing in it
        raise ConfigError("--resume auto looks into the run folder, but there is none; give --output as well")
    source = output if resume == AUTO and output is not None else resume
    checkpoint, passed = checkpoint_of(source, required=resume != AUTO and parts is None)
    if parts is not None and (checkpoint is None or checkpoint.at < parts.at):
        checkpoint, passed = parts.first, [*passed, *parts.passed]
    else:
        parts = None
    if output is None:
        return Beginning(None, checkpoint, tuple(passed), parts)
    same = Path(source).resolve() == Path(output).resolve()
    if same and checkpoint is None and not passed and not (Path(output) / "summary.json").exists():
        return Beginning(RunFolder(output, overwrite=True))  # begun, and ended before there was anything to go on from
    folder = RunFolder(output, overwrite=overwrite, goes_on=same and (checkpoint is not None or bool(passed)))
    return Beginning(folder, checkpoint, tuple(passed), parts)


def _first_free(output: str) -> RunFolder:
    """A folder of its own, also for a run that has started in the same second."""
    for name in (output, *(f"{output}-{number}" for number in range(2, 100))):
        try:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).mkdir()  # by one process only, if several try
        except FileExistsError:
            continue
        except OSError:
            break  # which will be told
        return RunFolder(name, overwrite=False)
    return RunFolder(output, overwrite=False)


@dataclass(frozen=True)
class Keeping:
    """What makes a run what it is, and what has come of it so far."""

    config: RunConfig | TrainConfig  # the effective one
    dataset: str
    model: str
    sizes: Sizes
    records: list[EpochRecord] = field(default_factory=list)  # grows while the run goes on

    def about(self, at: Position) -> Mapping[str, Any] | None:
        """For the manifest of a checkpoint; None while not all epochs before it have been told."""
        if len(self.records) < at.epoch - 1:
            return None
        return {
            "config": to_toml(self.config),
            "dataset": self.dataset,
            "model": self.model,
            "sizes": asdict(self.sizes),
            "records": [asdict(record) for record in self.records[: at.epoch - 1]],
            "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        }

    def begin(self, folder: RunFolder | None) -> None:
        """Write into the run folder, if there is one, what the run is and what it has done. Raises as that."""
        if folder is not None:
            folder.begin(to_toml(self.config), self.records)

    def go_on(self, beginning: Beginning) -> list[str]:
        """What a person should know of where the run begins; the epochs before are the run's from now on.

        Raises as `check`.
        """
        told = list(beginning.notes)
        if beginning.checkpoint is not None:
            at = beginning.checkpoint.at
            records, notes = self.check(beginning.checkpoint)
            self.records.extend(records)
            told += [f"goes on from {beginning.checkpoint.path}: epoch {at.epoch}, {at.step} steps done", *notes]
        return told

    def check(self, checkpoint: Checkpoint) -> tuple[list[EpochRecord], list[str]]:
        """The epochs before a checkpoint, and what a person should know before this run goes on from it.

        Raises:
            ConfigError: it was saved by a run that learns something else, or has come further than this one is to.
            DataError: it was saved by a run on other data, or its manifest is none of this version.
        """
        where = f"checkpoint {checkpoint.path}"
        try:
            saved = from_toml(checkpoint.about["config"], source=where)
            sizes = decoded(Sizes, checkpoint.about["sizes"])
            records = [decoded(EpochRecord, record) for record in checkpoint.about["records"]]
            known = {"dataset": checkpoint.about["dataset"], "model": checkpoint.about["model"]}
            versions = dict(checkpoint.about["versions"])
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{where} says not what it is of ({type(error).__name__}: {error}); resume another"
            ) from error
        notes = check_resumable(saved if isinstance(self.config, RunConfig) else saved.train, self.config, where)
        for name, was, now in (
            ("data set", known["dataset"], self.dataset),
            ("network", known["model"], self.model),
            ("sizes of the data", sizes, self.sizes),
        ):
            if was != now:
                raise DataError(f"{where} was saved with {name} {was}, but it is {now} now; go on with what it was")
        self._check_end(checkpoint.at, records, where)
        if versions.get("torch") != str(torch.__version__):
            notes.append(f"torch was {versions.get('torch')} and is {torch.__version__}: the last bits may differ")
        return records, notes

    def _check_end(self, at: Position, records: Sequence[EpochRecord], where: str) -> None:
        """Raise ConfigError unless a run that is `at` a position after these epochs can end when this one is to.

        It is not cut back, and its last epoch has an evaluation.
        """
        train = self.config.train if isinstance(self.config, RunConfig) else self.config
        whole = at.step <= (at.epoch - 1) * self.sizes.steps_per_epoch
        tested = not records or records[-1].block_test_error_percent is not None
        least = at.epoch - 1 if whole and tested else at.epoch
        if train.epochs < least:
            raise ConfigError(
                f"{where} is at epoch {at.epoch}, step {at.step} of its run, which cannot end after --epochs "
                f"{train.epochs}; give at least {least}, or begin a run of its own"
            )


def load(
    beginning: Beginning, init_from: str | None, stages: Sequence[Stage], topology: Topology, bulk: Bulk
) -> tuple[Position, float]:
    """Bring the stages of all processes to where the run begins, and for how many seconds its epoch has been trained.

    Raises ConfigError if they are of another network.
    """
    checkpoint, control = beginning.checkpoint, bulk.control
    mine = None
    if control.rank == 0:
        mine = [] if checkpoint is None else [*astuple(checkpoint.at), checkpoint.epoch_s, beginning.parts is not None]
    start = _START.share(control, mine)
    if start:
        epoch, step, epoch_s, in_parts = start
        if in_parts and beginning.parts is not None:
            load_stages(stages, topology, bulk, beginning.parts.read, "the checkpoint", beginning.parts.readers)
        else:
            load_stages(stages, topology, bulk, None if checkpoint is None else checkpoint.block, "the checkpoint")
        return Position(epoch, step), epoch_s
    if init_from is not None:
        first: Callable[[], Mapping[int, Any]] = lambda: weights_of(init_from) if control.rank == 0 else {}  # noqa: E731
        found = control.together("weights", first)
        load_weights(stages, topology, bulk, lambda index: found.get(index, {}), f"--init-from {init_from}")
    return Position(), 0.0


def saver_of(
    folder: RunFolder | None, keeping: Keeping, config: TrainConfig, topology: Topology, control: Control, at: Position
) -> Saver | None:
    """What saves the run, which begins `at`, where there is a run folder, which process 0 alone has."""
    first = control.rank == 0
    place = _SAVES.share(control, None if not first else str(folder.checkpoints) if folder is not None else "")
    if not place:
        return None
    bulk = Bulk(control, "checkpoint")
    if not config.checkpoint_local:
        return Saver(bulk, topology, Path(place) if first else None, config.keep, keeping.about)
    run = _RUN.share(control, secrets.token_hex(8) if first else None)
    part = control.together("part", lambda: _part(Path(place), control.rank, at))
    return Saver(bulk, topology, part, config.keep, keeping.about, run)


def _part(checkpoints: Path, rank: int, at: Position) -> Path:
    try:
        return own_part(checkpoints, rank, at)
    except OSError as error:
        raise ConfigError(
            f"process {rank} cannot keep checkpoints in {error.filename or checkpoints} ({error.strerror}); give an "
            "--output that every process can write, or leave out --checkpoint-local"
        ) from error
