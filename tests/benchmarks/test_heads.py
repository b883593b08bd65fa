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
