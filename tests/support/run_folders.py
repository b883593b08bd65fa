"""Finished runs in folders, small ones."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.cli import parse
from pipeline.training import Options, run

__all__ = ["SMALL", "train"]

SMALL = (
    *("--model", "mlp", "--hidden-units", "8", "--train-limit", "120", "--test-limit", "50", "--batch-size", "32"),
    *("--epochs", "2", "--threads", "1", "--decoder-dim", "32", "--target-projection", "8", "--lr", "0.01"),
)


def train(folder: Path, *flags: str) -> Path:
    """A run of handwritten digits, with further flags; its folder."""
    run(parse([*SMALL, *flags]).config, Options(output=str(folder)))
    return folder
