"""The run folder: configuration, metrics, summary, weights, local classifiers, curves. Only process 0 writes it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save, save_file
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.report.attempt import attempt
from pipeline.report.folder_lock import FolderLock
from pipeline.report.plots import save_curves
from pipeline.report.records import EpochRecord, Summary
from pipeline.runtime.parts import clear, has_saved
from pipeline.text import json_text

__all__ = ["EVALUATION", "FILES", "RunFolder", "check_kept", "default_folder", "write_whole"]

EVALUATION = ("exits.json", "exits.png")
"""What an evaluation of a finished run adds."""

FILES = (
    *("config.toml", "metrics.jsonl", "summary.json", "model.safetensors", "exits.safetensors", "curves.png"),
    *EVALUATION,
)


def default_folder(dataset: str, model: str, loss: str) -> str:
    return f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{dataset}-{model}-{loss}"


def check_kept(state: Mapping[str, Tensor]) -> None:
    """Raise ConfigError for a tensor of a kind that `model.safetensors` cannot hold."""
    for name, tensor in state.items():
        try:
            save({"x": torch.zeros(1).to(tensor.dtype)})
        except Exception:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ConfigError(
                f"block {name.partition('.')[0]} keeps {name.partition('.')[2]} as {kind}, which model.safetensors "
                "cannot hold; keep it in another number format, or train without an output folder"
            ) from None


class RunFolder:
    """Creates the folder at once, so that a wrong path, or one that holds a run, is refused before any training.

    No other run can have it until `close`. What an earlier one has left stays until `begin`, so that a mistake found
    in between costs nothing, and is no run in the way of the next try.
    """

    def __init__(self, path: str, *, overwrite: bool, goes_on: bool = False) -> None:
        self.path = Path(path)
        self._config, self._goes_on = "", goes_on
        self._untold: list[str] = []  # lines of metrics.jsonl that could not be written yet
        new = not (overwrite or goes_on)
        if new:
            self._check_free()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self.path)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            if new:
                self._check_free()  # from a run that has come and gone before this one got the lock, too
            self._check_checkpoints()
        except ConfigError:
            self.close()
            raise

    def _held(self) -> list[str]:
        return [name for name in FILES if os.path.lexists(self.path / name)]

    def _check_free(self) -> None:
        held = self._held() + [self.checkpoints.name] * has_saved(self.checkpoints)
        if held:
            raise ConfigError(
                f"--output {self.path} holds a run already ({', '.join(held)}); choose another folder, add "
                f"--overwrite, or go on with --resume {self.path}"
            )

    def _check_checkpoints(self) -> None:
        if self.checkpoints.is_symlink():
            if self._goes_on:  # else the link will be removed
                raise ConfigError(f"{self.checkpoints} is a link, which is not followed; put the folder in its place")
        elif self.checkpoints.exists() and not self.checkpoints.is_dir():
            raise ConfigError(f"{self.checkpoints} is no folder, but checkpoints are to lie there; move it away")

    def _unwritable(self, error: OSError) -> ConfigError:
        return ConfigError(f"--output {self.path} cannot be written ({error.strerror}); choose another folder")

    def close(self) -> None:
        """Let another run have the folder."""
        self._lock.release()

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints, which is made by the first one."""
        return self.path / "checkpoints"

    def begin(self, toml: str, records: Sequence[EpochRecord]) -> None:
        """The run begins, with what is known of its epochs so far. Raises ConfigError where it cannot be written.

        Where it does not go on in its own folder, all of the run before goes; else that stays until there is something
        newer.
        """
        try:
            if not self._goes_on:
                for name in self._held():
                    (self.path / name).unlink()
                clear(self.checkpoints)
            self.write_config(toml)
            self.restore(records)
        except OSError as error:
            raise self._unwritable(error) from error

    def write_config(self, toml: str) -> None:
        self._config = toml
        self._write("config.toml", lambda part: part.write_text(toml, encoding="utf-8"))

    def restore(self, records: Sequence[EpochRecord]) -> None:
        """Let the metrics hold these epochs and no others: the run goes on after them."""
        text = "".join(json_text(asdict(record)) + "\n" for record in records)
        self._write("metrics.jsonl", lambda part: part.write_text(text, encoding="utf-8"))

    def append(self, record: EpochRecord) -> None:
        """Add an epoch to the metrics. Raises OSError where it cannot be; then the next call adds it, too."""
        self._untold.append(json_text(asdict(record)) + "\n")
        self._tell()

    def _tell(self) -> None:
        """Write what has not been, or nothing of it."""
        if not self._untold:
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW  # a link would lead out
        handle = os.open(self.path / "metrics.jsonl", flags, 0o666)
        with os.fdopen(handle, "ab", buffering=0) as file:
            before, data = os.fstat(handle).st_size, "".join(self._untold).encode()
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(handle, before)
                raise
        self._untold.clear()

    def finish(
        self,
        summary: Summary,
        weights: Mapping[str, Tensor],
        exits: Mapping[str, Tensor],
        records: Sequence[EpochRecord],
        input_shape: tuple[int, ...],
        classes: int,
    ) -> list[str]:
        """Write weights (with what it takes to build the network again), summary, local classifiers and curves.

        Whatever fails, the others are written. Returns what the user should know: that there are no curves, say.
        Raises OSError where weights, metrics, summary or local classifiers cannot be written.
        """
        known = {"model": summary.model, "input_shape": ",".join(map(str, input_shape)), "classes": str(classes)}
        try:
            self._write("model.safetensors", lambda part: _save(weights, part, known))
        finally:
            try:
                text = json_text(asdict(summary), indent=2) + "\n"
                self._write("summary.json", lambda part: part.write_text(text, encoding="utf-8"))
            finally:
                try:
                    self._complete(records)
                finally:
                    self._finish_exits(exits, summary.weights_sha256)
        title = f"{summary.model} on {summary.dataset}, {summary.loss}"
        curves = self.path / "curves.png"
        draw = partial(save_curves, records, title=title)
        return attempt(str(curves), lambda: self._write(curves.name, draw))

    def _complete(self, records: Sequence[EpochRecord]) -> None:
        """Metrics of all epochs and the configuration, also where somebody has cleared them away meanwhile."""
        self.restore(records)
        self._untold.clear()
        if self._config and not (self.path / "config.toml").exists():
            self.write_config(self._config)

    def _finish_exits(self, exits: Mapping[str, Tensor], weights_sha256: str) -> None:
        """Write the local classifiers, where there are any, and drop what was evaluated of the weights before."""
        if exits:
            known = {"weights_sha256": weights_sha256}
            self._write("exits.safetensors", lambda part: _save(exits, part, known))
        for name in EVALUATION:
            (self.path / name).unlink(missing_ok=True)

    def _write(self, name: str, write: Callable[[Path], object]) -> None:
        write_whole(self.path / name, write)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Under another name first, so that half a file is never taken for a result."""
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have cleared it away meanwhile
    try:
        part.unlink(missing_ok=True)  # a link would lead out
        part.touch(exist_ok=False)
        mode = part.stat().st_mode  # the user's; safetensors has its own
        write(part)
        part.chmod(mode)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _save(weights: Mapping[str, Tensor], path: Path, known: dict[str, str]) -> None:
    """Tensors that share memory are saved each by itself, as the file wants it: every name is kept."""
    seen: set[int] = set()
    own: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        memory = tensor.untyped_storage().data_ptr()
        own[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    try:
        save_file(own, path, metadata=known)
    except SafetensorError as error:
        raise OSError(f"{path.name}: {error}") from error
