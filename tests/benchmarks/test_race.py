"""The race: what is trained when, that one process computes what several would, and what is made of it."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.contenders.backprop import train_backprop, train_checkpointed
from benchmarks.contenders.footprint import joules
from benchmarks.contenders.methods import Method
from benchmarks.contenders.methods import train as train_method
from benchmarks.experiments import time_to_accuracy
from benchmarks.harness.crew import Crew, CrewError, Member
from benchmarks.race import training
from benchmarks.race.curves import Curve, looked_after, train_curve
from benchmarks.race.emulated import Emulated, keep_emulated, read_emulated, stage_costs
from benchmarks.race.entrants import Entrant, entrants
from benchmarks.race.ledger import Job, Kept, Ledger, Trained
from benchmarks.race.lines import BACKPROP, MICROBATCHES, REPLICAS, Line, lines, local_line
from benchmarks.race.order import all_lines, best_head, config_of, epochs_left, ready
from benchmarks.race.outcome import Found, curves_of, paired, rows_of, steps_to, targets_of, wanted_errors
from benchmarks.race.speed import Speed, keep_speeds, read_speeds, work_of
from benchmarks.race.tasks import HEADS, Task, tasks
from pipeline.config.schema import RunConfig, override
from pipeline.errors import DataError
from pipeline.training import Options, run
from tests.benchmarks.test_contenders import MODERN

ALONE = Member(0, 1, 1)
(QUICK,) = tasks(True, "data")
CIFAR, FASHION = tasks(False, "data")
CONFIG = override(MODERN, {"train_limit": 128})


def curve_of(*errors: float) -> Curve:
    return Curve(tuple(range(10, 10 * len(errors) + 1, 10)), errors, 1.0)


def run_of(seed: int, *errors: float) -> Trained:
    return Trained(0.1, 1.0, seed, curve_of(*errors))


def test_looks_are_spread_evenly_over_an_epoch_and_end_with_it() -> None:
    assert looked_after(100, 4) == {25, 50, 75, 100}
    assert looked_after(469, 4) == {117, 234, 352, 469}
    assert looked_after(2, 4) == {1, 2}


def test_lines_are_what_the_race_is_between() -> None:
    names = [line.name for line in lines(CIFAR)]
    assert len(set(names)) == len(names) == 3 + 2 * len(HEADS) + 4
    cheap = local_line(CIFAR, None, "predsim").applied(CIFAR.config, 0.4, 0.3, 2).train
    assert (cheap.loss, cheap.similarity_head, cheap.lr, cheap.head_lr, cheap.seed) == (
        "predsim",
        "pool-4x4",
        0.4,
        0.3,
        2,
    )
    assert local_line(FASHION, 2, "predsim").applied(FASHION.config, 1e-3, 1.0, 1).train.similarity_head == "conv"
    copy = local_line(CIFAR, 2, "copy").applied(CIFAR.config, 0.4, 1.0, 1).train
    assert (copy.loss, copy.classifier, copy.segments, copy.head_start) == ("pred", "copy", 2, "random")
    assert BACKPROP.applied(CIFAR.config, 0.8, 0.3, 1).train == replace(CIFAR.config.train, lr=0.8)


def test_settings_are_tried_on_held_out_samples_before_any_run() -> None:
    line, kept = local_line(QUICK, 2, "copy"), Kept()
    low, high = QUICK.rates
    first, other = QUICK.head_rates
    assert ready(QUICK, {line: kept}) == [Job(line, low, first), Job(line, high, first)]
    assert ready(QUICK, {line: kept}, [Job(line, low, first)]) == [Job(line, high, first)]
    both = (Trained(low, first, None, curve_of(40.0, 20.0)), Trained(high, first, None, curve_of(30.0, 30.0)))
    assert ready(QUICK, {line: Kept(both)}) == [Job(line, low, other)], "the factor is tried at the better rate"
    tried = (*both, Trained(low, other, None, curve_of(10.0, 19.0)))
    runs = [Job(line, low, other, seed) for seed in (1, 2)]
    assert ready(QUICK, {line: Kept(tried)}) == runs
    assert ready(QUICK, {line: Kept(tried, (run_of(1, 9.0),))}) == runs[1:]
    assert ready(QUICK, {line: Kept(tried, (run_of(1, 9.0), run_of(2, 9.0)))}) == []
    held, whole = config_of(QUICK, Job(line, low, first)), config_of(QUICK, runs[0])
    assert (held.data.held_out, held.train.epochs, whole.data.held_out, whole.train.epochs) == (0.1, 1, 0.0, 2)


def test_backprop_has_no_heads_to_be_tuned_and_first_seeds_come_first() -> None:
    tried = tuple(Trained(lr, QUICK.head_rates[0], None, curve_of(50.0)) for lr in QUICK.rates)
    kept = {BACKPROP: Kept(tried, (run_of(1, 9.0),)), REPLICAS: Kept(tried)}
    low = QUICK.rates[0]
    assert [(job.line, job.seed) for job in ready(QUICK, kept)] == [(REPLICAS, 1), (BACKPROP, 2), (REPLICAS, 2)]
    assert all((job.lr, job.head_lr) == (low, 1.0) for job in ready(QUICK, kept))


def test_more_segments_come_with_the_head_that_is_best_for_two() -> None:
    runs = {local_line(QUICK, 2, head): 20.0 + index for index, head in enumerate(HEADS)}

    def read(line: Line) -> Kept:
        return Kept((), tuple(run_of(seed, runs[line]) for seed in (1, 2))) if line in runs else Kept()

    assert best_head(QUICK, read) == "linear"
    assert [line.name for line in all_lines(QUICK, read)][-1] == "3 segments, linear"
    assert all_lines(QUICK, lambda line: Kept()) == lines(QUICK)


def test_what_is_left_is_counted_in_epochs() -> None:
    kept = {line: Kept() for line in lines(QUICK)}
    # Two rates and one more factor, an epoch each, where there are heads; two seeds of two epochs.
    of_local, of_others = 3 + 4, 2 + 4
    assert epochs_left(QUICK, kept) == (2 * len(HEADS) + 1) * of_local + 7 * of_others
    kept[BACKPROP] = Kept((Trained(0.1, 1.0, None, curve_of(50.0)),), (run_of(1, 9.0),))
    assert epochs_left(QUICK, kept) == (2 * len(HEADS) + 1) * of_local + 7 * of_others - 3


def test_curves_are_kept_and_read_again(tmp_path: Path) -> None:
    ledger, line = Ledger(tmp_path, QUICK), local_line(QUICK, 2, "copy")
    assert ledger.read(line) == Kept()
    ledger.add(Job(line, 0.1, 0.3), curve_of(9.0, 8.0))
    for seed in (2, 1):
        ledger.add(Job(line, 0.1, 0.3, seed), curve_of(7.5, 6.25))
    kept = ledger.read(line)
    assert kept.choice() == (0.1, 0.3) and [one.seed for one in kept.runs] == [1, 2]
    assert kept.runs[0].curve == curve_of(7.5, 6.25) and ledger.path(line).name == "2-segments-copy.json"
    assert not list(tmp_path.glob("**/*.part"))


def test_curves_of_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    line = local_line(QUICK, 2, "copy")
    Ledger(tmp_path, QUICK).add(Job(line, 0.1, 0.3), curve_of(9.0))
    other = replace(QUICK, config=override(QUICK.config, {"batch_size": 16, "data_dir": "elsewhere"}), looks=3)
    with pytest.raises(DataError) as caught:
        Ledger(tmp_path, other).read(line)
    path = tmp_path / "digits-mlp" / "2-segments-copy.json"
    assert str(caught.value) == (
        f"{path} was trained with other settings (batch_size, looks); remove it to train anew"
    )


def test_damaged_files_are_named(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, QUICK)
    path = ledger.path(BACKPROP)
    path.parent.mkdir()
    path.write_text('{"settings": {}, "tries": [3]}')
    with pytest.raises(DataError, match=r"backprop\.json cannot be read as curves of a race .*; mend or remove it$"):
        ledger.read(BACKPROP)
    path.write_text("{")
    with pytest.raises(DataError, match=r"backprop\.json cannot be read as speeds .*; mend or remove it$"):
        read_speeds(path)
    with pytest.raises(DataError, match=r"backprop\.json cannot be read as emulated devices .*; mend or remove it$"):
        read_emulated(path)


def test_speeds_and_emulated_devices_are_kept_and_read_again(tmp_path: Path) -> None:
    speeds = {"backprop, one process": Speed((0.5, 0.25), 400.0, None), "other": Speed((1.0,), 1.0, 2.5)}
    keep_speeds(tmp_path / "speed.json", QUICK, speeds)
    assert read_speeds(tmp_path / "speed.json") == speeds and read_speeds(tmp_path / "none.json") == {}
    emulated = [Emulated(2, "block, copy", "block, copy", (0.5, 0.6))]
    keep_emulated(tmp_path / "emulated.json", QUICK, emulated)
    assert read_emulated(tmp_path / "emulated.json") == emulated and read_emulated(tmp_path / "none.json") == []


def test_joules_are_those_of_all_processors_or_none(tmp_path: Path) -> None:
    assert joules(tmp_path) is None
    for name, value in (("intel-rapl:0", "3000000\n"), ("intel-rapl:1", "500000\n"), ("intel-rapl:0:0", "9\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(value)
    assert joules(tmp_path) == 3.5
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("")
    assert joules(tmp_path) is None


def found_of(errors: Mapping[Line, list[tuple[float, ...]]], seconds: Mapping[str, float]) -> Found:
    tried = (Trained(0.1, 1.0, None, curve_of(50.0)),)
    kept = {
        line: Kept(tried, tuple(run_of(seed, *row) for seed, row in enumerate(rows, 1)))
        for line, rows in errors.items()
    }
    everyone = entrants(list(errors))
    speeds = {entrant.label: Speed((seconds[entrant.line.name],), 100.0, None) for entrant in everyone}
    works = {entrant.label: 1.0 for entrant in everyone}
    return Found(QUICK, kept, everyone, speeds, works, [Emulated(2, "2 segments, copy", "2 segments, copy", (0.5,))])


TWO, BLOCK = local_line(QUICK, 2, "copy"), local_line(QUICK, None, "copy")
FOUND = found_of(
    {
        BACKPROP: [(50.0, 40.0, 30.0, 20.0, 10.0), (50.0, 40.0, 30.0, 22.0, 10.0)],
        MICROBATCHES: [(50.0, 40.0, 30.0, 20.0, 10.0), (50.0, 40.0, 30.0, 21.0, 10.0)],
        REPLICAS: [(50.0, 40.0, 30.0, 20.0, 10.0), (50.0, 40.0, 30.0, 20.0, 10.0)],
        TWO: [(50.0, 40.0, 30.0, 21.0, 10.5), (50.0, 40.0, 30.0, 21.0, 11.5)],
        BLOCK: [(60.0, 50.0, 40.0, 30.0, 15.0), (60.0, 50.0, 40.0, 30.0, 25.0)],
    },
    {
        "backprop": 1.0,
        "backprop, 4 microbatches": 2.0,
        "backprop, 2 replicas": 1.5,
        "2 segments, copy": 0.6,
        "block, copy": 0.5,
    },
)


def test_steps_are_counted_to_the_first_look_that_is_good_enough() -> None:
    curve = curve_of(50.0, 20.0, 30.0, 10.0)
    assert [steps_to(curve, wanted) for wanted in (60, 20, 15, 9)] == [10, 20, 40, None]


def test_the_wanted_errors_are_what_backprop_has_come_to() -> None:
    assert wanted_errors(FOUND.runs(BACKPROP)) == {60: 30.0, 80: 21.0, 100: 10.0}


def test_differences_are_of_equal_seeds() -> None:
    gap = paired(FOUND.runs(TWO), FOUND.runs(BACKPROP))
    assert gap is not None and gap.mean == 1.0 and gap.standard_error == pytest.approx(0.5)
    assert paired(FOUND.runs(TWO), FOUND.runs(BACKPROP)[1:]) is None


def test_rows_tell_errors_steps_seconds_and_what_was_chosen() -> None:
    rows = {row.label: row for row in rows_of(FOUND)}
    two = rows["digits-mlp: 2 segments, copy, pipeline"]
    assert two.figures["steps_to_80"].median == 40 and two.figures["seconds_to_80"].median == 24.0
    assert "steps_to_100" not in two.figures, "10.5 is more than 10"
    assert two.settings["minus_backprop"] == 1.0 and two.settings["lr"] == 0.1
    assert "minus_backprop" not in rows["digits-mlp: backprop, one process"].settings
    # 40 steps that take half as long, of backprop's 40 and 50
    emulated = rows["digits-mlp: emulated, 2 devices: 2 segments, copy"]
    assert emulated.figures["time_of_one_device"].median == pytest.approx(20 / 45)
    assert curves_of(FOUND)["2 segments, copy"][-1] == (50.0, 11.0)
    assert rows_of(replace(FOUND, kept={line: Kept() for line in FOUND.kept})) == []


def test_targets_hold_the_fastest_against_the_fastest() -> None:
    targets = {target.name: target for target in targets_of(FOUND)}
    told = (
        "2. digits-mlp: time to the error that backprop has after 80 % of its run, 2 segments, copy, pipeline, over "
    )
    assert [name for name in targets if name.startswith("2.")] == [
        f"{told}the best pipelined backprop",
        f"{told}DDP",
        f"{told}backprop in one process",
    ]
    assert targets[f"{told}DDP"].measured == pytest.approx(0.4) and targets[f"{told}DDP"].met
    assert targets[f"{told}backprop in one process"].measured == pytest.approx((0.6 + 0.48) / 2)
    error = targets["1. digits-mlp: 2 segments, copy: test error minus backprop's, points ± 0.50"]
    assert (error.measured, error.met) == (1.0, False)
    third = targets["3. digits-mlp: steps to that error, no loss a block reaches it, over backprop's"]
    assert math.isinf(third.measured) and not third.met


@pytest.mark.parametrize("task", [CIFAR, FASHION, QUICK], ids=lambda task: task.name)
def test_every_line_is_a_configuration_and_every_entrant_has_its_work(task: Task) -> None:
    known = [*lines(task), *(local_line(task, count, "copy") for count in task.segments)]
    for line in known:
        for seed in (None, 1):
            config_of(task, Job(line, task.rates[0], task.head_rates[0], seed))
    everyone = entrants(known)
    assert len({entrant.label for entrant in everyone}) == len(everyone)
    if task is QUICK:
        works = {entrant.label: work_of(task, entrant) for entrant in everyone}
        assert works["backprop, activation checkpointing"] > works["backprop, one process"] == works["backprop, DDP"]
        assert works["block, linear, pipeline"] < works["block, copy, pipeline"]


def test_emulated_devices_share_all_the_work_where_segments_end() -> None:
    whole = stage_costs(QUICK, BACKPROP, 1)
    assert whole is not None and len(whole) == 1
    halves = stage_costs(QUICK, BACKPROP, 2)
    assert halves is not None and sum(halves) == pytest.approx(whole[0])
    two = local_line(QUICK, 2, "copy")
    costs = stage_costs(QUICK, two, 2)
    assert costs is not None
    assert sum(costs) == pytest.approx(work_of(QUICK, Entrant(two, Method("x", "ours", 1))))
    assert stage_costs(QUICK, two, 3) is None


@pytest.mark.parametrize("segments", [None, 2])
def test_a_local_line_learns_what_the_product_learns(segments: int | None) -> None:
    line = local_line(CIFAR, segments, "copy")
    config = line.applied(CONFIG, 0.1, 0.5, 3)
    curve = train_curve(ALONE, line, config, 2)
    errors = [epoch.test_error_percent for epoch in run(config, Options()).epochs]
    assert list(curve.errors[1::2]) == errors and curve.steps == (2, 4, 6, 8)


def test_backprop_learns_what_its_contenders_learn() -> None:
    curve = train_curve(ALONE, BACKPROP, CONFIG, 1)
    assert curve.errors == train_backprop(ALONE, CONFIG).errors == train_checkpointed(ALONE, CONFIG).errors


def with_one_thread(member: Member, method: Method, config: RunConfig) -> tuple[float | None, ...]:
    torch.set_num_threads(1)
    return train_method(replace(member, threads=1), method, config).errors


@pytest.mark.bench
@pytest.mark.usefixtures("forked_crews")
def test_one_process_learns_what_several_would() -> None:
    others = [line for line in lines(QUICK) if line.every is not None]
    soon = [replace(line, every=3) for line in others[::2]]  # within the few steps of a test
    with Crew(2) as team:
        for entrant in entrants([REPLICAS, MICROBATCHES, *soon]):
            found = team.call(with_one_thread, entrant.method, CONFIG)
            curve = train_curve(ALONE, entrant.line, CONFIG, 1)
            assert all(errors == curve.errors for errors in found), entrant.label
    assert {line.outer for line in soon} == {False, True}


def test_what_is_averaged_differs_from_what_is_not() -> None:
    local = next(line for line in lines(QUICK) if line.every is not None)
    never, often = (train_curve(ALONE, replace(local, every=every), CONFIG, 1).errors for every in (99, 1))
    diloco = train_curve(ALONE, replace(local, every=1, outer=True), CONFIG, 1).errors
    replicas = train_curve(ALONE, REPLICAS, CONFIG, 1).errors
    assert len({never, often, diloco, replicas}) >= 3


@pytest.mark.bench
@pytest.mark.usefixtures("forked_crews")
def test_jobs_are_done_once_and_a_failure_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [BACKPROP, local_line(QUICK, 2, "linear")]
    monkeypatch.setattr(training, "all_lines", lambda task, read: few)
    ledger, told = Ledger(tmp_path, QUICK), list[Job]()
    training.train_all(QUICK, ledger, [0, 0], lambda job, curve, left: told.append(job))
    assert len(set(told)) == len(told) == 2 + 2 + 3 + 2
    before = [ledger.read(line) for line in few]
    training.train_all(QUICK, ledger, [0], lambda job, curve, left: told.append(job))
    assert len(told) == 9 and [ledger.read(line) for line in few] == before
    ledger.path(BACKPROP).unlink()
    broken = replace(QUICK, config=override(QUICK.config, {"train_limit": 326}))  # parts of a single sample
    monkeypatch.setattr(training, "all_lines", lambda task, read: [MICROBATCHES])
    with pytest.raises(CrewError, match="Expected more than 1 value per channel"):
        training.train_all(broken, Ledger(tmp_path / "other", broken), [0], lambda job, curve, left: None)


@pytest.mark.bench
@pytest.mark.usefixtures("forked_crews")
def test_an_interrupt_ends_what_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Event()
    call = Crew.call

    def told(self: Crew, *args: object, **kwargs: object) -> object:
        begun.set()
        return call(self, *args, **kwargs)  # type: ignore[arg-type]

    def interrupted(*args: object, **kwargs: object) -> None:
        assert begun.wait(60)
        raise KeyboardInterrupt

    endless = replace(QUICK, config=override(QUICK.config, {"epochs": 100_000}), tuning_epochs=100_000)
    monkeypatch.setattr(Crew, "call", told)
    monkeypatch.setattr(training, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.train_all(endless, Ledger(tmp_path, endless), [0], lambda job, curve, left: None)


def test_a_signal_ends_the_race_and_a_line_says_how_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def stopped(*args: object, **kwargs: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(time_to_accuracy, "train_all", stopped)
    assert main(["time-to-accuracy", "--quick", "--output", str(tmp_path)]) == 1
    told = "error: time-to-accuracy was stopped; the same command goes on from what is kept\n"
    assert capfd.readouterr().err == told
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_part_that_there_is_not_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["time-to-accuracy", "--part", "all"]) == 2
    assert capfd.readouterr().err == "error: --part is 'all'; choose one of curves, speed, emulated\n"
