"""After a failure that a library call has caught, nothing of the run is left, and the next one works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import ROOT, spawn

pytestmark = [pytest.mark.runs, pytest.mark.timeout(240)]

SCRIPT = str(ROOT / "tests" / "runs" / "aborted_run.py")


def told(how: str, folder: Path) -> list[list[Any]]:
    """What each process that lived saw."""
    ends = spawn([SCRIPT, how, str(folder / "pid")], 2, 200)
    found = [json.loads(end.stdout) for end in ends if end.stdout]
    assert found, "\n".join(end.stderr for end in ends)
    return found


@pytest.mark.parametrize("how", ["raises", "group-raises"])
def test_processes_that_live_on_train_again(how: str, tmp_path: Path) -> None:
    """A process group that the caller has made stays as it was."""
    first, second = told(how, tmp_path)
    assert first[0] == "StageFailure: stage 1 (process 1) failed: RuntimeError: the fuse has blown"
    assert second[0] == "RuntimeError: the fuse has blown"
    for _, _, nothing_left, now, before, same, group in (first, second):
        assert nothing_left, f"{now} where there were {before}"
        assert same and group


@pytest.mark.parametrize(("how", "message"), [("dies", "died: "), ("hangs", "has been silent for 4 s")])
def test_a_process_whose_peer_is_gone_has_nothing_left_of_it(how: str, message: str, tmp_path: Path) -> None:
    ((error, _, nothing_left, now, before, _, _),) = told(how, tmp_path)
    assert f"StageFailure: stage 1 (process 1) {message}" in error
    assert nothing_left, f"{now} where there were {before}"
