"""What may change when a run goes on from a checkpoint, and what may not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from pipeline.config.fields import flag_name, joined
from pipeline.config.schema import RunConfig, TrainConfig
from pipeline.errors import ConfigError

__all__ = ["AUTO", "check_resumable", "placed_anew"]

AUTO = "auto"
"""As `--resume`: from the newest complete checkpoint of `--output`, or from the start if there is none."""

_FREE = {  # what changes no bit of what is still to be computed
    *(
        "epochs",
        "eval_every",
        "checkpoint_every",
        "checkpoint_local",
        "keep",
        "stages",
        "split",
        "queue_depth",
        "timeout",
        "capture",
    ),
    *("data_dir", "download"),
}
_ROUNDING = {"device", "threads"}  # what changes the last bits


def check_resumable(saved: RunConfig | TrainConfig, now: RunConfig | TrainConfig, where: str) -> list[str]:
    """What a person should know of a run that goes on with another configuration than it was saved with.

    Raises ConfigError that names both values of an entry on which the weights depend.
    """
    before, after, notes = dict(_entries(saved)), dict(_entries(now)), []
    free = _FREE - _bound(now.train if isinstance(now, RunConfig) else now)
    for name, value in after.items():
        was, flag = before.get(name), flag_name(name)
        if was == value or name in free:
            continue
        if name in _ROUNDING:
            notes.append(
                f"{flag} was {_text(was)} and is {_text(value)}: the last bits may differ from a run undisturbed"
            )
            continue
        raise ConfigError(
            f"{where} was saved with {flag} {_text(was)}, but it is {_text(value)} now; go on with what it was, or "
            "begin a run of its own, with its weights by --init-from"
        )
    return notes


def _bound(train: TrainConfig) -> set[str]:
    """What is free in other runs, but not in this one."""
    bound = set()
    if train.lr_schedule != "milestones":  # rates that go on step by step depend on where the last epoch ends
        bound.add("epochs")
    if train.wire_rounds:
        bound.add("split")  # which says the number of stages, too
    return bound


def placed_anew(config: RunConfig, world_size: int) -> RunConfig:
    """The configuration of an earlier run for so many processes: what was found for as many as then stays.

    So does, in one process, a split on which bits depend.
    """
    train = config.train
    same = world_size == 1 if train.split is None else len(train.split) == world_size
    if same:
        return config
    threads = train.threads if isinstance(train.threads, int) else None
    placed = replace(train, threads=threads)
    if not (train.wire_rounds and world_size == 1):
        placed = replace(placed, split=None, stages=None)
    return replace(config, train=placed)


def _entries(config: RunConfig | TrainConfig) -> Iterator[tuple[str, Any]]:
    sections = asdict(config).values() if isinstance(config, RunConfig) else [asdict(config)]
    for section in sections:
        yield from section.items()


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        return joined(value) or "none"
    return "none" if value is None else str(value)
