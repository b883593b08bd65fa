"""The experiment `heads`: how its trainings end, and what is timed."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.experiments import heads
from benchmarks.harness.crew import Crew
from pipeline.errors import DataError

SMALL = heads._QUICK


@pytest.mark.bench
@pytest.mark.usefixtures("forked_crews")
def test_an_interrupt_ends_all_trainings_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, call = list[str](), Crew.call

    def told(self: Crew, *args: object, **kwargs: object) -> object:
        begun.append("one")
        os.kill(os.getpid(), signal.SIGINT)
        return call(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Crew, "call", told)
    monkeypatch.setattr(heads, "cores", lambda: [0])
    with pytest.raises(KeyboardInterrupt):
        heads._train_all(replace(SMALL, epochs=100_000), "data", tmp_path)
    assert begun == ["one"], "the five others were not begun"


def test_a_training_that_fails_ends_the_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = list[str]()

    def failing(folder: Path, *rest: object) -> float:
        begun.append(folder.name)
        raise DataError(f"{folder.name} is wrong")

    monkeypatch.setattr(heads, "_error", failing)
    monkeypatch.setattr(heads, "cores", lambda: [0])
    with pytest.raises(DataError, match="digits-conv-1 is wrong"):
        heads._train_all(SMALL, "data", tmp_path)
    assert begun == ["digits-conv-1"]


class Fake:
    """A crew whose trainings take a second more each time."""

    def __init__(self) -> None:
        self.calls = 0

    def call(self, *args: object, **kwargs: object) -> list[float]:
        self.calls += 1
        return [float(self.calls)]


def test_the_first_round_of_steps_warms_up_and_does_not_count() -> None:
    crew = Fake()
    seconds = heads._time_all(replace(SMALL, rounds=2), crew)  # type: ignore[arg-type]
    names = ("backprop", *SMALL.heads)
    assert crew.calls == 3 * len(names)
    assert seconds["backprop"] == [(len(names) + 1) / 2, (2 * len(names) + 1) / 2], "two steps each"
    assert {len(taken) for taken in seconds.values()} == {2}
