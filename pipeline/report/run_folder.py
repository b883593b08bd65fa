"""The run folder: configuration, metrics, summary, weights and curves. Only process 0 writes it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.report.plots import save_curves
from pipeline.report.records import EpochRecord, Summary

__all__ = ["RunFolder", "default_folder"]

_FILES = ("config.toml", "metrics.jsonl", "summary.json", "model.safetensors", "curves.png")


def default_folder(dataset: str, model: str, loss: str) -> str:
    return f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{dataset}-{model}-{loss}"


class RunFolder:
    """Creates the folder at once, so that a wrong path, or one that holds a run, is refused before any training."""

    def __init__(self, path: str, *, overwrite: bool) -> None:
        self.path = Path(path)
        held = [name for name in _FILES if (self.path / name).exists()]
        if held and not overwrite:
            raise ConfigError(
                f"--output {path} holds a run already ({', '.join(held)}); choose another folder or add --overwrite"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in held:
                (self.path / name).unlink()
            (self.path / "metrics.jsonl").touch()
        except OSError as error:
            reason = error.strerror
            raise ConfigError(f"--output {path} cannot be written ({reason}); choose another folder") from error

    def write_config(self, toml: str) -> None:
        (self.path / "config.toml").write_text(toml, encoding="utf-8")

    def append(self, record: EpochRecord) -> None:
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record)) + "\n")

    def finish(
        self,
        summary: Summary,
        weights: Mapping[str, Tensor],
        records: Sequence[EpochRecord],
        input_shape: tuple[int, ...],
        classes: int,
    ) -> None:
        """Write weights (with what it takes to build the network again), curves and, last, the summary."""
        known = {"model": summary.model, "input_shape": ",".join(map(str, input_shape)), "classes": str(classes)}
        save_file(dict(weights), self.path / "model.safetensors", metadata=known)
        save_curves(records, self.path / "curves.png", f"{summary.model} on {summary.dataset}, {summary.loss}")
        (self.path / "summary.json").write_text(json.dumps(asdict(summary), indent=2) + "\n", encoding="utf-8")
