"""What a run leaves: every file for itself, whatever becomes of the others."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file

from pipeline.errors import ConfigError
from pipeline.learning.packet import Position
from pipeline.report import run_folder
from pipeline.report.run_folder import EVALUATION, FILES, RunFolder, check_kept
from pipeline.runtime.checkpoint_files import CheckpointWriter
from tests.support.made_up import made_up

RUN = made_up()
WRITTEN = [name for name in FILES if name not in EVALUATION]  # by a run itself


def finish(
    folder: RunFolder, weights: dict[str, torch.Tensor] | None = None, exits: dict[str, torch.Tensor] | None = None
) -> list[str]:
    exits = {"0.decoder.weight": torch.ones(3, 2)} if exits is None else exits
    return folder.finish(RUN.summary, weights or {"0.weight": torch.ones(2)}, exits, [RUN.record], (3,), 2)


def begin_anew(path: Path) -> None:
    folder = RunFolder(str(path), overwrite=True)
    folder.begin("x = 1", [])
    folder.close()


def no(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


def test_weights_that_share_memory_are_saved_under_all_their_names(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    weights = {"0.a": base, "0.b": base, "0.c": base[1], "0.d": base.T.contiguous(), "0.e": torch.ones(())}
    assert finish(RunFolder(str(tmp_path / "run"), overwrite=False), weights) == []
    again = load_file(tmp_path / "run" / "model.safetensors")
    assert set(again) == set(weights)
    assert all(torch.equal(again[name], x) for name, x in weights.items())


def test_curves_that_cannot_be_drawn_are_told_and_cost_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "save_curves", no)
    (note,) = finish(RunFolder(str(tmp_path), overwrite=False))
    assert note == f"{tmp_path}/curves.png could not be written ([Errno 28] No space left on device)"
    assert {"model.safetensors", "summary.json"} <= {path.name for path in tmp_path.iterdir()}


def test_weights_that_cannot_be_saved_cost_neither_summary_nor_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "save_file", no)
    with pytest.raises(OSError, match="No space left"):
        finish(RunFolder(str(tmp_path), overwrite=False))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "summary.json"]


def test_classifiers_that_cannot_be_saved_cost_no_other_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        if path.name.startswith("exits"):
            no()
        save_file(tensors, path, metadata)

    monkeypatch.setattr(run_folder, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        finish(RunFolder(str(tmp_path), overwrite=False))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "model.safetensors", "summary.json"]


def test_the_classifiers_file_is_there_where_there_are_any_and_says_of_which_weights(tmp_path: Path) -> None:
    finish(RunFolder(str(tmp_path / "without"), overwrite=False), exits={})
    assert not (tmp_path / "without" / "exits.safetensors").exists()
    finish(RunFolder(str(tmp_path / "with"), overwrite=False))
    with safe_open(tmp_path / "with" / "exits.safetensors", "pt") as file:
        assert list(file.keys()) == ["0.decoder.weight"]
        assert file.metadata() == {"weights_sha256": RUN.summary.weights_sha256}


def test_what_was_evaluated_of_a_run_goes_with_its_weights(tmp_path: Path) -> None:
    for goes_on in (True, False):
        folder = RunFolder(str(tmp_path), overwrite=not goes_on, goes_on=goes_on)
        for name in EVALUATION:
            (tmp_path / name).touch()
        finish(folder)
        folder.close()
        assert not [name for name in EVALUATION if (tmp_path / name).exists()]
    for name in EVALUATION:
        (tmp_path / name).touch()
    begin_anew(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml", "metrics.jsonl"]


def test_a_mistake_that_is_found_before_the_run_begins_costs_nothing(tmp_path: Path) -> None:
    """Such as weights that are not there: the folder was in the way of the next try, the run before was lost."""
    RunFolder(str(tmp_path / "new"), overwrite=False).close()
    RunFolder(str(tmp_path / "new"), overwrite=False).close()
    folder = RunFolder(str(tmp_path / "old"), overwrite=False)
    folder.begin("x = 1", [])
    finish(folder)
    folder.close()
    before = sorted((tmp_path / "old").iterdir())
    RunFolder(str(tmp_path / "old"), overwrite=True).close()
    assert sorted((tmp_path / "old").iterdir()) == before
    begin_anew(tmp_path / "old")
    assert sorted(path.name for path in (tmp_path / "old").iterdir()) == ["config.toml", "metrics.jsonl"]


def test_what_cannot_be_removed_of_a_run_before_is_told(tmp_path: Path) -> None:
    (tmp_path / "summary.json").mkdir()
    with pytest.raises(ConfigError, match=r"cannot be written \(Is a directory\); choose another folder"):
        begin_anew(tmp_path)


def test_an_epoch_that_could_not_be_written_down_comes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(str(tmp_path), overwrite=False)
    folder.append(replace(RUN.record, epoch=1))
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", no)
        with pytest.raises(OSError, match="No space left"):
            folder.append(replace(RUN.record, epoch=2))
    folder.append(replace(RUN.record, epoch=3))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


def test_a_folder_that_was_cleared_away_meanwhile_is_made_again(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path / "run"), overwrite=False)
    folder.write_config("[train]\n")
    folder.append(RUN.record)
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(OSError, match="No such file"):
        folder.append(RUN.record)
    assert finish(folder) == []
    assert {path.name for path in (tmp_path / "run").iterdir()} == set(WRITTEN)
    assert (tmp_path / "run" / "config.toml").read_text() == "[train]\n"
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1, "as many as the run had"


def test_a_link_to_nowhere_counts_as_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "summary.json").symlink_to(tmp_path / "gone" / "summary.json")
    with pytest.raises(ConfigError, match=r"holds a run already \(summary\.json\)"):
        RunFolder(str(tmp_path), overwrite=False)
    finish(RunFolder(str(tmp_path), overwrite=True))
    assert json.loads((tmp_path / "summary.json").read_text())["schema"] == 1


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("suffix", ["", ".part"])
@pytest.mark.parametrize("name", FILES)
def test_no_link_in_it_is_followed_out(tmp_path: Path, name: str, suffix: str, goes_on: bool) -> None:
    victim, path = tmp_path / "victim", tmp_path / "run"
    victim.write_text("mine")
    path.mkdir()
    (path / (name + suffix)).symlink_to(victim)
    before = victim.stat().st_mtime_ns
    folder = RunFolder(str(path), overwrite=True, goes_on=goes_on)
    folder.write_config("x = 1")
    folder.restore([])
    folder.append(RUN.record)
    assert finish(folder) == []
    assert victim.read_text() == "mine" and victim.stat().st_mtime_ns == before
    assert sorted(file.name for file in path.iterdir() if file.is_file() and not file.is_symlink()) == sorted(
        [".lock", *WRITTEN]
    )


def test_metrics_that_have_become_a_link_are_not_written_to(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path / "run"), overwrite=False)
    (tmp_path / "victim").touch()
    (tmp_path / "run" / "metrics.jsonl").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        folder.append(RUN.record)
    assert (tmp_path / "victim").read_text() == ""


def test_checkpoints_that_are_a_link_are_refused_or_removed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="run/checkpoints is a link, which is not followed; put the folder in its"):
        RunFolder(str(tmp_path / "run"), overwrite=False, goes_on=True)
    begin_anew(tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists() and (tmp_path / "elsewhere" / "mine").exists()


def test_checkpoints_alone_are_a_run_that_is_not_removed_without_a_word(tmp_path: Path) -> None:
    for name in ("whole", "part-00001"):
        place = tmp_path / name / "checkpoints" / ("" if name == "whole" else name)
        saved = CheckpointWriter(place, Position(1, 4)).finish(Position(1, 4), 0.0, {})
        with pytest.raises(ConfigError, match=r"holds a run already \(checkpoints\)"):
            RunFolder(str(tmp_path / name), overwrite=False)
        assert saved.is_dir()
        begin_anew(tmp_path / name)
        assert not (tmp_path / name / "checkpoints").exists()


def test_what_others_keep_among_checkpoints_stays(tmp_path: Path) -> None:
    """As where a project trains in its own folder, `--output .`: that was removed with all that was in it."""
    checkpoints = tmp_path / "checkpoints"
    saved = CheckpointWriter(checkpoints, Position(1, 4)).finish(Position(1, 4), 0.0, {})
    CheckpointWriter(checkpoints, Position(1, 8))  # of a process that has died
    (checkpoints / "part-00000" / "notes").mkdir(parents=True)
    (checkpoints / "mine.pt").touch()
    begin_anew(tmp_path)
    assert not saved.exists() and {path.name for path in checkpoints.iterdir()} == {"mine.pt", "part-00000"}
    assert (checkpoints / "part-00000" / "notes").is_dir()
    (tmp_path / "new" / "checkpoints").mkdir(parents=True)
    (tmp_path / "new" / "checkpoints" / "mine.pt").touch()
    RunFolder(str(tmp_path / "new"), overwrite=False).close()
    assert (tmp_path / "new" / "checkpoints" / "mine.pt").exists()


def test_a_file_in_place_of_the_checkpoints_is_told(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").touch()
    with pytest.raises(ConfigError, match="checkpoints is no folder, but checkpoints are to lie there; move it away"):
        RunFolder(str(tmp_path), overwrite=True)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_all_files_have_the_users_permissions(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        folder = RunFolder(str(tmp_path / "run"), overwrite=False)
        folder.write_config("x = 1")
        finish(folder)
        CheckpointWriter(folder.checkpoints, Position(1, 4)).finish(Position(1, 4), 0.0, {})
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != ".lock"]
    assert len(files) == 8
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == {path.name: oct(mode) for path in files}


def test_names_that_are_no_utf8_are_written_to(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/k\xe9 \x1b[31m")
    assert finish(RunFolder(path, overwrite=False)) == []
    assert torch.equal(load((Path(path) / "model.safetensors").read_bytes())["0.weight"], torch.ones(2))


def test_a_kind_of_tensor_that_the_file_cannot_hold_is_told() -> None:
    message = "block 1 keeps body.0.turns as complex128, which model.safetensors cannot hold; keep it in another"
    state = {"0.weight": torch.ones(1), "1.body.0.turns": torch.ones(1, dtype=torch.complex128)}
    with pytest.raises(ConfigError, match=message):
        check_kept(state)
    check_kept({"0.x": torch.ones(1, dtype=torch.bool), "0.y": torch.ones(1, dtype=torch.bfloat16)})
