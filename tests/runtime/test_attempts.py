"""What an attempt of a launch knows of the ones before."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from pipeline.config.environment import Environment
from pipeline.config.schema import TrainConfig
from pipeline.errors import ConfigError
from pipeline.learning.packet import Position
from pipeline.report.run_folder import RunFolder
from pipeline.runtime.attempts import Attempts
from pipeline.runtime.checkpoint_files import CheckpointWriter
from pipeline.runtime.world import World
from pipeline.training import Options, _begin, _name, _taken_over


def test_only_what_an_earlier_attempt_of_this_launch_has_begun_has_begun() -> None:
    store = HashStore()
    first, third = Attempts(store, 0), Attempts(store, 2)
    assert first.begun("a") is third.begun("a") is None
    first.begin("a", "here")
    assert first.begun("a") is None, "its own"
    assert third.begun("a") == "here" and third.begun("b") is None
    third.begin("a", "there")
    assert third.begun("a") is None, "its own by now"
    assert Attempts(store, 3).begun("a") == "there"
    assert Attempts(HashStore(), 1).begun("a") is None, "another launch"


def test_a_path_may_be_of_any_bytes() -> None:
    """The store takes UTF-8 only, which used to end the run in a traceback."""
    store, name = HashStore(), "r\udcff"
    Attempts(store, 0).begin(f"folder {name}", name)
    assert Attempts(store, 1).begun(f"folder {name}") == name


def world(store: HashStore, attempt: int) -> World:
    return World(Environment(0, 1, 0, 1, attempt=attempt), TrainConfig(), store)


def begun(output: Path, where: World, *, renames: bool = False) -> RunFolder:
    given = Options(str(output), renames=renames)
    folder = _begin(_taken_over(given, where), ExitStack(), None).folder
    assert folder is not None
    where.attempts.begin(_name(given), str(folder.path))
    return folder


def test_a_restart_begins_its_own_folder_anew_and_no_other(tmp_path: Path) -> None:
    store, own, other = HashStore(), tmp_path / "own", tmp_path / "other"
    other.mkdir()
    (other / "summary.json").write_text("{}")
    for folder in (own, other):
        refused = pytest.raises(ConfigError, match="other holds a run already")
        if folder is own:
            begun(folder, world(store, 0)).write_config("[train]")
        else:
            with refused:
                begun(folder, world(store, 0))
    restarted = world(store, 1)
    begun(own, restarted).begin("[data]", [])
    assert (own / "config.toml").read_text() == "[data]"
    with pytest.raises(ConfigError, match="own holds a run already"):
        begun(own, restarted)  # a second run of this attempt
    with pytest.raises(ConfigError, match="other holds a run already"):
        begun(other, restarted)
    assert (other / "summary.json").exists()


def test_a_restart_goes_on_from_another_run_until_it_has_saved_by_itself(tmp_path: Path) -> None:
    """It began from the start, without what it was to go on from, where it had died before its first checkpoint."""
    store, other, own = HashStore(), tmp_path / "other", tmp_path / "own"
    written(other / "checkpoints", Position(2, 6))
    given = Options(str(own), resume=str(other))
    for attempt in range(3):
        where, closing = world(store, attempt), ExitStack()
        with closing:
            beginning = _begin(_taken_over(given, where), closing, None)
            assert beginning.folder is not None and beginning.checkpoint is not None
            beginning.folder.begin("[train]", [])
            where.attempts.begin(_name(given), str(own))
            assert beginning.checkpoint.at == Position(2, 6 if attempt < 2 else 9)
        if attempt == 1:
            written(own / "checkpoints", Position(2, 9))


def written(checkpoints: Path, at: Position) -> None:
    writer = CheckpointWriter(checkpoints, at)
    writer.add({"0.w": torch.ones(1)}, 0)
    writer.finish(at, 0.0, {})


def test_a_restart_knows_its_own_folder_by_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    store = HashStore()
    own, other = (Path(os.fsdecode(os.fsencode(tmp_path) + name)) for name in (b"/k\xe9", b"/k\xe8"))
    begun(own, world(store, 0)).write_config("[train]")
    other.mkdir()
    (other / "config.toml").touch()
    restarted = world(store, 1)
    begun(own, restarted)
    with pytest.raises(ConfigError, match="holds a run already"):
        begun(other, restarted)


def test_a_restart_takes_over_a_folder_that_nobody_has_named(tmp_path: Path) -> None:
    """Its name has the time in it, so that a restart used to begin another one."""
    store, names = HashStore(), (tmp_path / "10-59-59", tmp_path / "11-00-00")
    names[0].mkdir()
    first = begun(names[0], world(store, 0), renames=True)
    assert first.path == tmp_path / "10-59-59-2", "another run has the name"
    first.close()
    for attempt in (1, 2):
        again = begun(names[1], world(store, attempt), renames=True)
        assert again.path == first.path
        again.close()


def test_the_names_of_a_dead_attempt_are_not_those_of_the_next() -> None:
    store = HashStore()
    dead, alive = world(store, 0), world(store, 1)
    dead.control.publish("address", "gone")
    dead.control.fail("stage 0 died")
    assert alive.control.peek("address") is None
    alive.control.raise_if_failed()
