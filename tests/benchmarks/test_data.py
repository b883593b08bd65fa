"""The images of experiments: there or fetched before anything is trained, without a network here."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.__main__ import main
from benchmarks.experiments import heads, time_to_accuracy
from benchmarks.harness import data
from benchmarks.harness.figures import summarize
from benchmarks.harness.report import Result, Row, bars
from benchmarks.race.tasks import tasks
from pipeline.config.schema import DataConfig

READERS = [(time_to_accuracy, "time-to-accuracy"), (heads, "heads")]


@pytest.fixture
def looked_for(monkeypatch: pytest.MonkeyPatch) -> list[DataConfig]:
    """What is read, all of which is there."""
    found: list[DataConfig] = []
    monkeypatch.setattr(data, "load_images", found.append)
    return found


def found_at_once(quick: bool, **given: object) -> Result:
    rows = [Row("one", {}, {"seconds": summarize([1.0])})]
    return Result(rows, [], bars("seconds", rows))


def test_they_are_those_that_the_experiments_train_with() -> None:
    assert set(data.DATASETS) == set(heads._FULL.datasets)
    assert set(data.DATASETS) == {task.config.data.dataset for task in tasks(False, "data")}


@pytest.mark.parametrize(("module", "name"), READERS)
def test_a_missing_data_set_is_told_before_anything_is_trained(
    module: ModuleType, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "run", lambda *given, **more: pytest.fail("it was run"))
    assert main([name, "--data-dir", str(tmp_path / "wrong"), "--output", str(tmp_path)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(
        f"error: cifar10 is not found in {tmp_path}/wrong/cifar-10-batches-py; add --download to fe"
    )


@pytest.mark.parametrize(("module", "name"), READERS)
def test_data_sets_are_fetched_before_anything_else(
    module: ModuleType, name: str, tmp_path: Path, looked_for: list[DataConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(quick: bool, **given: object) -> Result:
        assert [(one.dataset, one.download) for one in looked_for] == [("cifar10", True), ("fashion_mnist", True)]
        assert {one.data_dir for one in looked_for} == {"there"} and given["data_dir"] == "there"
        return found_at_once(quick)

    monkeypatch.setattr(module, "run", run)
    assert main([name, "--download", "--data-dir", "there", "--output", str(tmp_path)]) == 0


@pytest.mark.parametrize("arguments", [["--quick"], ["--part", "emulated"], ["--part", "curves"]])
def test_what_reads_no_images_looks_for_none(
    arguments: list[str], tmp_path: Path, looked_for: list[DataConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_to_accuracy, "run", found_at_once)
    monkeypatch.setattr(time_to_accuracy, "ready", lambda *_: [])  # all curves are there
    assert main(["time-to-accuracy", *arguments, "--output", str(tmp_path)]) == 0 and looked_for == []
    assert main(["time-to-accuracy", *arguments, "--output", str(tmp_path), "--download"]) == 0
    assert len(looked_for) == 2, "it was asked for"


def test_curves_that_are_missing_want_images(tmp_path: Path, looked_for: list[DataConfig]) -> None:
    assert time_to_accuracy.curves_missing("data", tmp_path) and looked_for == []


def test_nothing_is_fetched_unless_it_is_asked_for(
    tmp_path: Path, looked_for: list[DataConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "run", found_at_once)
    assert main(["heads", "--output", str(tmp_path)]) == 0
    assert [one.download for one in looked_for] == [False, False]


def test_experiments_without_images_have_nothing_to_fetch(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["queue", "--download"]) == 2
    assert capfd.readouterr().err == "error: --download is for time-to-accuracy and heads, not for queue\n"
