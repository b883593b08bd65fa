"""One run at a time in a folder."""

from __future__ import annotations

import errno
import fcntl
import os
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import pipeline
from pipeline.errors import ConfigError
from pipeline.report.folder_lock import FolderLock
from pipeline.report.keeping import begin
from pipeline.report.run_folder import RunFolder
from pipeline.report.trace_file import TraceFile
from tests.support.data import message
from tests.support.processes import fresh

HELD = "another run is under way in"


def test_a_folder_is_one_runs_until_it_ends(tmp_path: Path) -> None:
    first = FolderLock(tmp_path)
    text = message(lambda: FolderLock(tmp_path), ConfigError)
    assert text == f"{HELD} {tmp_path}; choose another folder, or wait for its end"
    first.release()
    first.release()
    second = FolderLock(tmp_path)
    second.release()
    assert list(tmp_path.iterdir()) == [], "nothing is left of it"


TAKES = """
import os, sys
from pathlib import Path
from pipeline.report.folder_lock import FolderLock
lock = FolderLock(Path("."))
os.kill(os.getpid(), 9)
"""


def test_another_process_is_told_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    held = FolderLock(tmp_path)
    assert HELD in fresh("-c", TAKES, cwd=tmp_path).stderr
    held.release()
    assert fresh("-c", TAKES, cwd=tmp_path).returncode == -9
    FolderLock(tmp_path).release()


def test_overwriting_or_going_on_in_a_live_run_is_refused(tmp_path: Path) -> None:
    live = RunFolder(str(tmp_path / "run"), overwrite=False)
    live.write_config("[train]\n")
    assert HELD in message(lambda: RunFolder(str(live.path), overwrite=True), ConfigError)
    assert HELD in message(lambda: begin(str(live.path), overwrite=False, resume="auto"), ConfigError)
    assert (live.path / "config.toml").exists(), "nothing of it is lost"
    live.close()
    RunFolder(str(live.path), overwrite=True).close()


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "elsewhere")
    text = message(lambda: RunFolder(str(tmp_path / "run"), overwrite=False), ConfigError)
    assert "cannot be written" in text and not (tmp_path / "elsewhere").exists()


def test_a_file_system_without_locks_is_no_hindrance(tmp_path: Path) -> None:
    with patch.object(fcntl, "flock", side_effect=OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))):
        RunFolder(str(tmp_path / "run"), overwrite=False).close()
    assert list((tmp_path / "run").iterdir()) == [], "nothing is left of the try"


def test_a_forked_process_leaves_the_lock_to_the_run(tmp_path: Path) -> None:
    held = FolderLock(tmp_path)
    with patch.object(os, "getpid", return_value=0):  # as there
        held.release()
    assert (tmp_path / ".lock").exists()


def test_a_run_that_came_and_went_while_another_started_is_seen(tmp_path: Path) -> None:
    lock = FolderLock.__init__

    def late(self: FolderLock, folder: Path) -> None:
        (folder / "summary.json").write_text("{}")
        lock(self, folder)

    with patch.object(FolderLock, "__init__", late):
        text = message(lambda: RunFolder(str(tmp_path), overwrite=False), ConfigError)
    assert "holds a run already (summary.json)" in text
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_there_is_nothing_to_go_on_from_in_a_folder_that_nobody_has_named(tmp_path: Path) -> None:
    """Its name has the time in it: the same command began anew each time, without a word."""
    for output, renames in ((None, False), (str(tmp_path / "run"), True)):
        text = message(partial(begin, output, overwrite=False, resume="auto", renames=renames), ConfigError)
        assert text == "--resume auto looks into the run folder, but there is none; give --output as well"
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    begun = [begin(str(tmp_path / "run"), overwrite=False, resume=None, renames=True).folder for _ in range(3)]
    assert [folder.path.name for folder in begun if folder is not None] == ["run", "run-2", "run-3"]
    with patch.object(Path, "exists", return_value=False):  # as if the others were made after a look
        fourth = begin(str(tmp_path / "run"), overwrite=False, resume=None, renames=True).folder
    assert fourth is not None and fourth.path.name == "run-4"
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        begin(str(tmp_path / "file" / "run"), overwrite=False, resume=None, renames=True)


def test_a_run_that_fails_lets_its_folder_go(tmp_path: Path) -> None:
    data = TensorDataset(torch.zeros(8, 4), torch.arange(8) % 3)
    for _ in range(2):
        with pytest.raises(pipeline.ConfigError, match="does not take input"):
            pipeline.train([nn.Linear(5, 3)], data, data, output=tmp_path / "run", overwrite=True)


def test_a_run_that_fails_as_it_opens_lets_its_folder_go_while_its_error_is_kept(tmp_path: Path) -> None:
    data, kept = TensorDataset(torch.zeros(8, 4), torch.arange(8) % 3), list[ConfigError]()
    with patch.object(TraceFile, "check_writable", side_effect=ConfigError("disk is full")):
        for _ in range(2):
            try:
                pipeline.train(
                    [nn.Linear(4, 3)], data, data, output=tmp_path / "run", overwrite=True, trace=tmp_path / "t.json"
                )
            except ConfigError as error:
                kept.append(error)
    assert [str(error) for error in kept] == ["disk is full"] * 2
