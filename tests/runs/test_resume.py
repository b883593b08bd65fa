"""A run that is cut off anywhere goes on from its last checkpoint to the bits of the undisturbed run."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import pipeline
from pipeline.config.schema import RunConfig
from pipeline.errors import ConfigError, DataError, StageFailure
from pipeline.runtime.checkpoint_files import Checkpoint, CheckpointWriter, checkpoints_in
from pipeline.training import Options, run
from tests.runs.exactness_cases import BASE, vary
from tests.support.processes import ROOT, call, spawn, started

pytestmark = pytest.mark.runs

SCRIPT = str(ROOT / "launch" / "pipeline_train.py")
FLAGS = [
    *("--width", "0.0625", "--hidden-units", "16", "--train-limit", "200", "--test-limit", "40", "--batch-size", "32"),
    *("--threads", "1", "--dropout", "0.2", "--quiet", "--lr-milestones", "1", "2"),
]
PLACEMENTS = {"one": ([], 1), "stages": (["--stages", "3"], 1), "two": ([], 2), "split": (["--split", "1,6,1"], 3)}


def train(placement: str, *flags: str, cwd: Path) -> str:
    """Run the command in a placement; what it prints."""
    own, processes = PLACEMENTS[placement]
    done = spawn([SCRIPT, *flags, *own], processes, 120, cwd=cwd)
    assert {end.status for end in done} == {0}, [end.stderr for end in done]
    return done[0].stdout


def state(folder: Path) -> str:
    return str(json.loads((folder / "summary.json").read_text())["state_sha256"])


def epochs(folder: Path) -> list[int]:
    return [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole run, and the first two epochs of it, saved every third step, by every placement."""
    root = tmp_path_factory.mktemp("resume")
    train("one", *FLAGS, "--epochs", "3", "--output", "whole", cwd=root)
    return root


def begun(root: Path, placement: str) -> Path:
    """Two epochs of seven steps, which `placement` has saved after every third one."""
    folder = root / f"from-{placement}"
    if not folder.exists():
        saving = ("--checkpoint-every", "3", "--keep", "9")
        train(placement, *FLAGS, "--epochs", "2", *saving, "--output", folder.name, cwd=root)
    return folder


PAIRS = [(source, target) for source in PLACEMENTS for target in PLACEMENTS]
QUICK = [("one", "split"), ("split", "stages"), ("two", "one")]


def cut_off(source: Path, target: Path, leave: int) -> Path:
    """A copy of a run that has died after so many checkpoints."""
    shutil.copytree(source, target)
    for path in checkpoints_in(target / "checkpoints")[:-leave]:
        shutil.rmtree(path)
    for name in ("summary.json", "model.safetensors", "curves.png"):
        (target / name).unlink()
    return target


@pytest.mark.parametrize(
    ("source", "target"),
    [pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.long) for pair in PAIRS],
)
def test_a_run_goes_on_in_any_placement(source: str, target: str, undisturbed: Path, tmp_path: Path) -> None:
    folder = cut_off(begun(undisturbed, source), tmp_path / "run", leave=2)
    newest = checkpoints_in(folder / "checkpoints")[0].name  # how many there are is the disk's to say
    printed = train(target, "--resume", "run", "--epochs", "3", "--quiet", "--threads", "1", cwd=tmp_path)
    assert f"note: goes on from run/checkpoints/{newest}: epoch " in printed
    assert state(folder) == state(undisturbed / "whole")
    assert epochs(folder) == [1, 2, 3]


def test_a_finished_run_is_prolonged(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(begun(undisturbed, "one"), tmp_path / "run")
    train("one", "--resume", "run", "--epochs", "3", "--quiet", cwd=tmp_path)
    assert state(tmp_path / "run") == state(undisturbed / "whole")


def test_a_run_of_which_an_evaluation_is_left_ends_with_its_own_speed(tmp_path: Path) -> None:
    config, output = vary(SMALL, epochs=1, checkpoint_every=5), str(tmp_path / "run")
    whole = run(config, Options(output)).summary
    ended, trained = checkpoints_in(Path(output, "checkpoints"))[:2]
    shutil.rmtree(ended)
    assert trained.name == f"epoch-00001-step-{whole.steps:09d}"
    resumed = run(config, Options(output, resume=output)).summary
    assert resumed.state_sha256 == whole.state_sha256
    assert 0 < resumed.train_seconds <= whole.train_seconds
    shutil.rmtree(ended)
    with patch.object(Checkpoint, "epoch_s", 0.0):  # as one of an earlier version
        resumed = run(config, Options(output, resume=output)).summary
    assert resumed.train_seconds == 0 and math.isnan(resumed.samples_per_second)


def test_a_run_is_not_cut_back_to_fewer_epochs_than_it_has_trained(tmp_path: Path) -> None:
    """It ended as one of so few, with the weights of more; where the last of them has no test error in a traceback."""
    config, output = vary(SMALL, epochs=3, eval_every=2, checkpoint_every=3, keep=9), str(tmp_path / "run")
    whole = run(config, Options(output)).summary
    steps = whole.steps // 3
    assert steps % 3, "the end of an epoch is not saved for its own sake"
    for path in checkpoints_in(tmp_path / "run" / "checkpoints"):
        at = [int(part) for part in re.findall(r"\d+", path.name)]
        if at[1] < 2 * steps:  # within the second epoch
            break
        shutil.rmtree(path)
    told = rf"is at epoch 2, step {at[1]} of its run, which cannot end after --epochs 1; give at least 2"
    with pytest.raises(ConfigError, match=told):
        run(vary(config, epochs=1), Options(output, resume=output))
    assert run(vary(config, epochs=2), Options(output, resume=output)).summary.steps == 2 * steps
    with pytest.raises(ConfigError, match=r"which cannot end after --epochs 1; give at least 2"):
        run(vary(config, epochs=1), Options(output, resume=output))


def test_a_run_does_not_end_with_an_epoch_that_was_not_evaluated(tmp_path: Path) -> None:
    config, output = vary(SMALL, epochs=2, eval_every=2), str(tmp_path / "run")
    whole = run(config, Options(output)).summary
    newest, before = checkpoints_in(tmp_path / "run" / "checkpoints")
    shutil.rmtree(newest)
    assert before.name.startswith("epoch-00002-"), "after the first"
    with pytest.raises(ConfigError, match=r"which cannot end after --epochs 1; give at least 2"):
        run(vary(config, epochs=1), Options(output, resume=output))
    assert run(config, Options(output, resume=output)).summary.state_sha256 == whole.state_sha256


def test_another_folder_takes_the_rest_of_a_run(undisturbed: Path, tmp_path: Path) -> None:
    source = cut_off(begun(undisturbed, "one"), tmp_path / "run", leave=1)
    before = sorted(path.name for path in source.rglob("*"))
    train("one", "--resume", "run", "--epochs", "3", "--output", "other", "--quiet", cwd=tmp_path)
    assert state(tmp_path / "other") == state(undisturbed / "whole") and epochs(tmp_path / "other") == [1, 2, 3]
    assert sorted(path.name for path in source.rglob("*")) == before


def test_auto_is_a_fresh_start_where_there_is_nothing_and_else_goes_on(undisturbed: Path, tmp_path: Path) -> None:
    flags = [*FLAGS, "--epochs", "3", "--output", "run", "--resume", "auto"]
    assert "goes on" not in train("one", *flags, cwd=tmp_path)
    assert state(tmp_path / "run") == state(undisturbed / "whole")
    assert "note: goes on from run/checkpoints/epoch-00004-step-000000021" in train("one", *flags, cwd=tmp_path)
    assert state(tmp_path / "run") == state(undisturbed / "whole")


def test_a_damaged_checkpoint_is_passed_over_with_a_note(undisturbed: Path, tmp_path: Path) -> None:
    folder = cut_off(begun(undisturbed, "one"), tmp_path / "run", leave=3)
    newest, before = checkpoints_in(folder / "checkpoints")[:2]  # a slow disk puts them off
    (newest / "block-00002.safetensors").write_bytes(b"")
    printed = train("one", "--resume", "run", "--epochs", "3", "--quiet", cwd=tmp_path)
    assert re.search(rf"note: checkpoint {newest.name} is damaged \(.* has 0 bytes.*\): passed over", printed)
    assert f"goes on from run/checkpoints/{before.name}" in printed
    assert state(folder) == state(undisturbed / "whole")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--resume", "run", "--seed", "2"], "was saved with --seed 1, but it is 2 now"),
        (["--resume", "run", "--loss", "pred"], "was saved with --loss predsim, but it is pred now"),
        (
            ["--resume", "nothing"],
            "error: --resume nothing: nothing/config.toml cannot be read (No such file or directory); "
            "give the folder of a run",
        ),
        (["--resume", "run", "--recipe", "digits"], "--resume run brings its own configuration; drop --recipe"),
        (["--resume", "run", "--overwrite"], "--overwrite removes what --resume goes on from"),
        (["--init-from", "run/config.toml"], "--init-from run/config.toml is no model.safetensors of a run"),
        (["--resume", "run", "--init-from", "x"], "drop one of them"),
    ],
)
def test_what_cannot_go_on_is_told_in_one_line(
    flags: Sequence[str], told: str, undisturbed: Path, tmp_path: Path
) -> None:
    shutil.copytree(begun(undisturbed, "one"), tmp_path / "run")
    done = call(SCRIPT, *flags, "--quiet", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert told in done.stderr
    assert state(tmp_path / "run") == state(undisturbed / "from-one"), "nothing is lost"


def test_a_run_without_checkpoints_cannot_go_on(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(begun(undisturbed, "one"), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    done = call(SCRIPT, "--resume", "run", cwd=tmp_path)
    assert "--resume run holds no complete checkpoint; give the folder of a run that has saved" in done.stderr


def test_weights_alone_begin_another_run(undisturbed: Path, tmp_path: Path) -> None:
    weights = str(begun(undisturbed, "one") / "model.safetensors")
    for placement in ("one", "two"):
        flags = (*FLAGS, "--epochs", "1", "--lr", "1e-9", "--optimizer", "sgd", "--init-from", weights)
        train(placement, *flags, "--output", placement, cwd=tmp_path)
    assert state(tmp_path / "one") == state(tmp_path / "two")
    first, after = (pipeline.load_model(folder).state_dict() for folder in (Path(weights).parent, tmp_path / "one"))
    near = {name: torch.allclose(after[name], first[name], atol=1e-5) for name in first if "weight" in name}
    assert all(near.values())


@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_saves_and_ends(rank: int, undisturbed: Path, tmp_path: Path) -> None:
    flags = [*FLAGS, "--epochs", "3", "--checkpoint-every", "99", "--output", "run"]
    (tmp_path / "slowly.py").write_text(SLOWLY)
    with started([str(tmp_path / "slowly.py"), *flags], 2, tmp_path) as team:
        wait_until((tmp_path / "begun").exists)
        os.kill(team.processes[rank].pid or 0, signal.SIGTERM)
        ends = team.finish(60)
    (told,) = [line for end in ends for line in end.stderr.splitlines()]
    assert re.fullmatch(r"error: interrupted at epoch \d, step \d+ of the run; go on with --resume run", told)
    assert {end.status for end in ends} == {1}
    train("one", "--resume", "run", "--quiet", cwd=tmp_path)
    assert state(tmp_path / "run") == state(undisturbed / "whole")


def test_sigusr1_saves_and_goes_on(undisturbed: Path, tmp_path: Path) -> None:
    flags = [*FLAGS, "--epochs", "3", "--checkpoint-every", "99", "--output", "run"]
    (tmp_path / "slowly.py").write_text(SLOWLY)
    with started([str(tmp_path / "slowly.py"), *flags], 1, tmp_path) as team:
        wait_until((tmp_path / "begun").exists)
        os.kill(team.processes[0].pid or 0, signal.SIGUSR1)
        wait_until(lambda: len(checkpoints_in(tmp_path / "run" / "checkpoints")) == 1)
        (end,) = team.finish(60)
    assert (end.status, end.stderr) == (0, "")
    assert state(tmp_path / "run") == state(undisturbed / "whole")


SLOWLY = f"""
import runpy, sys, time
from pathlib import Path
from pipeline.learning.stage import Stage
enter = Stage._enter
def slowly(stage, packet, *, training):
    time.sleep(0.15)
    if stage.index == 0 and packet.at.step >= 2:
        Path("begun").touch()
    return enter(stage, packet, training=training)
Stage._enter = slowly
sys.argv[0] = {SCRIPT!r}
runpy.run_path({SCRIPT!r}, run_name="__main__")
"""


def wait_until(true: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.02)


SMALL: RunConfig = vary(BASE, loss="pred", epochs=2, threads=1)


@pytest.mark.parametrize(
    "values", [{"optimizer": "muon", "momentum": None, "nesterov": True}, {"ema": 0.6, "head_lr": 0.5}], ids=str
)
def test_what_beside_weights_decides_bits_goes_on_from_mid_epoch(values: dict[str, Any], tmp_path: Path) -> None:
    config, output = vary(SMALL, checkpoint_every=3, keep=9, **values), str(tmp_path / "run")
    whole = run(config, Options(output)).summary
    for path in checkpoints_in(tmp_path / "run" / "checkpoints")[:-1]:
        shutil.rmtree(path)
    (left,) = checkpoints_in(tmp_path / "run" / "checkpoints")
    assert left.name == "epoch-00001-step-000000003"
    resumed = run(vary(config, stages=3), Options(output, resume=output)).summary
    assert (resumed.state_sha256, resumed.weights_sha256) == (whole.state_sha256, whole.weights_sha256)
    assert resumed.block_test_error_percent == whole.block_test_error_percent


def test_a_run_goes_on_with_its_split_where_the_wire_rounds(tmp_path: Path) -> None:
    """Nobody asks for another: one that were measured anew would round elsewhere."""
    config, output = vary(SMALL, checkpoint_every=3, keep=9, wire="bf16"), str(tmp_path / "run")
    whole = run(vary(config, split=(3, 5)), Options(output)).summary
    for path in checkpoints_in(tmp_path / "run" / "checkpoints")[:-1]:
        shutil.rmtree(path)
    for asked in ({"split": (4, 4)}, {"stages": 3}, {"stages": 1}):
        with pytest.raises(ConfigError, match=r"was saved with --split 3,5, but it is [\d,]+ now; go on with what it"):
            run(vary(config, **asked), Options(output, resume=output))
    for asked in ({}, {"stages": 2}):
        resumed = run(vary(config, **asked), Options(str(tmp_path / f"{len(asked)}"), resume=output)).summary
        assert resumed.state_sha256 == whole.state_sha256
    assert run(config, Options()).summary.state_sha256 != whole.state_sha256, "one stage rounds nowhere"


def test_two_stages_whose_wire_rounds_go_on_in_one_process_and_not_in_three(tmp_path: Path) -> None:
    flags = [*FLAGS, "--wire", "bf16", "--split", "3,5"]
    train("one", *flags, "--epochs", "2", "--output", "whole", cwd=tmp_path)
    train("two", *flags, "--epochs", "1", "--output", "run", cwd=tmp_path)
    three = spawn([SCRIPT, "--resume", "run", "--epochs", "2", "--quiet"], 3, 120, cwd=tmp_path)
    printed = "".join(end.stderr for end in three)
    assert {end.status for end in three} == {2} and printed.count("\n") == 1, printed
    assert re.search(r"was saved with --split 3,5, but it is \d,\d,\d now; go on with what it was", printed)
    train("one", "--resume", "run", "--epochs", "2", "--quiet", cwd=tmp_path)
    assert state(tmp_path / "run") == state(tmp_path / "whole")


LOCAL = ["--checkpoint-local", "--checkpoint-every", "3", "--keep", "9"]


@pytest.mark.parametrize("target", ["one", "two", "split"])
def test_parts_on_the_disks_of_processes_are_one_checkpoint(undisturbed: Path, tmp_path: Path, target: str) -> None:
    folder = undisturbed / "local"
    if not folder.exists():
        train("split", *FLAGS, "--epochs", "2", *LOCAL, "--output", "local", cwd=undisturbed)
    kept = {path.name: [at.name for at in checkpoints_in(path)] for path in (folder / "checkpoints").iterdir()}
    assert set(kept) == {"part-00000", "part-00001", "part-00002"}
    assert len({tuple(names) for names in kept.values()}) == 1 and len(kept["part-00000"]) > 2
    held = [Path(folder, "checkpoints", part, kept[part][0]).glob("block-*") for part in sorted(kept)]
    assert [len(list(files)) for files in held] == [1, 6, 1]
    shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "part-00002" / kept["part-00002"][0])  # as if it had died there
    told = train(target, *FLAGS, "--epochs", "3", *LOCAL, "--resume", "run", "--output", "run", cwd=tmp_path)
    assert f"part-00000/{kept['part-00000'][1]}" in told
    assert state(tmp_path / "run") == state(undisturbed / "whole")
    assert epochs(tmp_path / "run") == [1, 2, 3]


def test_parts_of_two_runs_are_never_taken_together(undisturbed: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "2")):
        train("two", *FLAGS, "--epochs", "1", *LOCAL, "--seed", seed, "--output", name, cwd=tmp_path)
    shutil.rmtree(tmp_path / "a" / "checkpoints" / "part-00001")
    shutil.copytree(tmp_path / "b" / "checkpoints" / "part-00001", tmp_path / "a" / "checkpoints" / "part-00001")
    done = spawn([SCRIPT, *FLAGS, "--epochs", "2", "--resume", "a", "--output", "c"], 2, 60, cwd=tmp_path)
    assert {end.status for end in done} == {2}
    told = "of the run in a/checkpoints the disks of these processes hold no more than the blocks 0, 1, "
    assert told in "".join(end.stderr for end in done)


def test_a_run_that_process_0_has_saved_goes_on_in_parts(undisturbed: Path, tmp_path: Path) -> None:
    train("two", *FLAGS, "--epochs", "1", "--output", "run", cwd=tmp_path)
    train("split", *FLAGS, "--epochs", "2", *LOCAL, "--resume", "run", "--output", "run", cwd=tmp_path)
    (older,) = checkpoints_in(tmp_path / "run" / "checkpoints")
    assert older.name < checkpoints_in(tmp_path / "run" / "checkpoints" / "part-00001")[0].name
    told = train("one", *FLAGS, "--epochs", "3", "--resume", "run", "--output", "run", cwd=tmp_path)
    assert "part-00000/epoch-00003-step-000000014" in told and state(tmp_path / "run") == state(undisturbed / "whole")


def test_a_disk_that_is_full_while_saving_ends_the_run_and_the_one_before_stays(tmp_path: Path) -> None:
    add, saved = CheckpointWriter.add, []

    def full(writer: CheckpointWriter, tensors: Mapping[str, Tensor], index: int) -> None:
        saved.append(1)
        if len(saved) > 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add(writer, tensors, index)

    output = str(tmp_path / "run")
    told = r"cannot write the checkpoint of epoch 3, step \d+ to .* \(No space left on device\); make room, then go on"
    with patch.object(CheckpointWriter, "add", full), pytest.raises(StageFailure, match=told):
        run(SMALL, Options(output))
    assert [path.name[:11] for path in checkpoints_in(tmp_path / "run" / "checkpoints")] == ["epoch-00002"]
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1, "no half of one is left"
    resumed = run(SMALL, Options(output, resume=output)).summary
    assert resumed.state_sha256 == run(SMALL, Options()).summary.state_sha256


def test_checkpoints_cost_no_bit_and_only_the_newest_stay(tmp_path: Path) -> None:
    config = vary(SMALL, checkpoint_every=2, keep=2)
    saved = run(config, Options(str(tmp_path / "run"))).summary
    assert saved.state_sha256 == run(SMALL, Options()).summary.state_sha256
    assert len(checkpoints_in(tmp_path / "run" / "checkpoints")) == 2


def own() -> tuple[TensorDataset, nn.Sequential]:
    torch.manual_seed(4)
    data = TensorDataset(torch.randn(40, 6), torch.arange(40) % 3)
    layers = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)
    return data, nn.Sequential(*layers)


def test_a_users_own_network_goes_on(tmp_path: Path) -> None:
    config = pipeline.TrainConfig(epochs=4, batch_size=8, threads=1)
    data, network = own()
    whole = pipeline.train(pipeline.blocks_from(network), data, data, config).summary
    data, network = own()
    half = pipeline.TrainConfig(epochs=2, batch_size=8, threads=1)
    pipeline.train(pipeline.blocks_from(network), data, data, half, output=tmp_path / "run")
    data, network = own()
    resumed = pipeline.train(pipeline.blocks_from(network), data, data, config, resume=tmp_path / "run")
    assert resumed.summary.state_sha256 == whole.state_sha256
    assert [record.epoch for record in resumed.epochs] == [1, 2, 3, 4]


def test_similarities_of_many_classes_go_on_in_mixed_precision(tmp_path: Path) -> None:
    """The first batch after a pause is worked out anew where the undisturbed run fills the last one's again."""
    data = TensorDataset(torch.randn(200, 6, generator=torch.Generator().manual_seed(4)), torch.arange(200) % 100)

    def trained(epochs: int, **places: Any) -> str:
        torch.manual_seed(4)
        blocks = pipeline.blocks_from(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 100)))
        config = pipeline.TrainConfig(epochs=epochs, batch_size=50, loss="sim", precision="bf16", threads=1)
        return str(pipeline.train(blocks, data, data, config, **places).summary.state_sha256)

    whole = trained(2)
    trained(1, output=tmp_path / "run")
    assert trained(2, resume=tmp_path / "run") == whole


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        ("width", ConfigError, r"the checkpoint is of another network: 0\.body\.0\.weight has shape \[17, 6\] now"),
        ("data", DataError, r"was saved with sizes of the data .* go on with what it was"),
    ],
)
def test_another_network_or_other_data_cannot_go_on(change: str, kind: Any, told: str, tmp_path: Path) -> None:
    config = pipeline.TrainConfig(epochs=1, batch_size=8, threads=1)
    data, network = own()
    pipeline.train(pipeline.blocks_from(network), data, data, config, output=tmp_path / "run")
    width = 17 if change == "width" else 16
    other = nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 3))
    if change == "data":
        data = TensorDataset(torch.randn(41, 6), torch.arange(41) % 3)
    with pytest.raises(kind, match=told):
        pipeline.train(pipeline.blocks_from(other), data, data, config, resume=tmp_path / "run")
