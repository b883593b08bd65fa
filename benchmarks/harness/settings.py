"""What makes one configuration differ from another."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pipeline.config.schema import RunConfig

__all__ = ["RESOLVED", "departures"]

RESOLVED = frozenset({"nonlinearity", "segments"})
"""What a run folder's configuration holds resolved, whatever was asked for."""


def departures(config: RunConfig, reference: RunConfig) -> dict[str, Any]:
    """Fields of `config` that are not as in `reference`, whichever section holds them."""
    before = _entries(reference)
    return {name: value for name, value in _entries(config).items() if value != before[name]}


def _entries(config: RunConfig) -> dict[str, Any]:
    return {name: value for section in asdict(config).values() for name, value in section.items()}
