"""The race: what is trained when, that one process computes what several would, and what is made of it."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.contenders import footprint
from benchmarks.contenders.arithmetic import counted
from benchmarks.contenders.backprop import train_backprop, train_checkpointed
from benchmarks.contenders.checkpointing import Checkpointed
from benchmarks.contenders.footprint import joules
from benchmarks.contenders.methods import Method
from benchmarks.contenders.methods import train as train_method
from benchmarks.emulation.load import BATCH
from benchmarks.experiments import time_to_accuracy
from benchmarks.harness import jobs
from benchmarks.harness.crew import Crew, CrewError, Member
from benchmarks.harness.jobs import Core
from benchmarks.harness.report import provenance
from benchmarks.race import order, speed_files, training
from benchmarks.race.curves import Curve, looked_after, train_curve
from benchmarks.race.emulated import Emulated, contests, keep_emulated, read_emulated, stage_costs
from benchmarks.race.entrants import Entrant, entrants
from benchmarks.race.ledger import Job, Kept, Ledger, Trained
from benchmarks.race.lines import BACKPROP, MICROBATCHED, REPLICAS, Line, lines, local_line, with_segments
from benchmarks.race.order import all_lines, best_head, config_of, epochs_left, ready
from benchmarks.race.speed import Begun, Round, Speed, with_averages, work_of
from benchmarks.race.speed_files import begun_path, keep_begun, keep_speeds, read_begun, read_speeds
from benchmarks.race.tasks import HEADS, Task, tasks
from pipeline.config.schema import RunConfig, override
from pipeline.errors import DataError
from pipeline.learning.balance import cut_segments
from pipeline.network.blocks import Dropout
from pipeline.training import Options, run
from tests.benchmarks.test_contenders import MODERN
from tests.support.processes import ROOT
from tests.support.races import QUICK, curve_of, run_of

pytestmark = pytest.mark.timeout(900)

ALONE = Member(0, 1, 1)
FASHION, CIFAR = tasks(False, "data")
HERE = provenance()
MEASURED = ("speed", "emulated")
JOB = Job(BACKPROP, 0.1, 1.0, 1)
CONFIG = override(MODERN, {"train_limit": 128})


def test_looks_are_spread_evenly_over_an_epoch_and_end_with_it() -> None:
    assert looked_after(100, 4) == {25, 50, 75, 100}
    assert looked_after(469, 4) == {117, 234, 352, 469}
    assert looked_after(2, 4) == {1, 2}


def test_lines_are_what_the_race_is_between() -> None:
    names = [line.name for line in lines(CIFAR)]
    assert len(set(names)) == len(names) == 2 + len(MICROBATCHED) + 2 * len(CIFAR.heads) + 4
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
    late = local_line(CIFAR, 2, "copy", 4).applied(CIFAR.config, 0.4, 1.0, 1).train
    assert late == replace(copy, first_cut_after=4) and copy.first_cut_after is None
    assert BACKPROP.applied(CIFAR.config, 0.8, 0.3, 1).train == replace(CIFAR.config.train, lr=0.8)


@pytest.mark.parametrize("task", [CIFAR, FASHION, QUICK], ids=lambda task: task.name)
def test_no_two_local_lines_learn_the_same(task: Task) -> None:
    """Whatever their names say: the blocks of the segments, or the heads, differ."""
    all_local = [line for line in (*lines(task), *with_segments(task, "copy")) if line.is_local]
    found = {}
    for line in all_local:
        config = override(task.config, dict(line.overrides))
        train = config.train
        found[line.name] = (cut_segments(train, counted(config)[0]), train.loss, train.classifier)
    assert len(set(found.values())) == len(found) == len(all_local)
    if task == CIFAR:
        assert found["2 early segments, copy"] == ((2, 5), "pred", "copy")
        assert found["2 late segments, copy"][0] == (4, 3) and found["2 segments, copy"][0] == (3, 4)


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


def test_everyone_is_tried_as_often() -> None:
    low, high = QUICK.rates
    coarse = tuple(Trained(lr, 1.0, None, curve_of(error)) for lr, error in ((low, 50.0), (high, 40.0)))
    further = {line: ready(QUICK, {line: Kept(coarse)}) for line in lines(QUICK)}
    assert {len(jobs) for jobs in further.values()} == {1}
    (fine,), (factor,) = further[BACKPROP], further[local_line(QUICK, 2, "copy")]
    assert fine.lr == pytest.approx(0.7 * high) and fine.head_lr == 1.0, "without heads the rate is moved a little"
    assert (factor.lr, factor.head_lr) == (high, 0.3)
    assert all(len(task.head_rates) - 1 == len(task.fine_rates) for task in (CIFAR, FASHION, QUICK))


def test_backprop_has_no_heads_whose_rate_is_tried() -> None:
    turned = replace(QUICK, head_rates=QUICK.head_rates[::-1])
    assert {job.head_lr for job in ready(turned, {BACKPROP: Kept()})} == {1.0}
    assert {job.head_lr for job in ready(turned, {local_line(turned, 2, "copy"): Kept()})} == {turned.head_rates[0]}


def test_first_seeds_come_first_with_the_rate_of_the_best_try() -> None:
    low, high = QUICK.rates
    tried = tuple(Trained(lr, 1.0, None, curve_of(50.0)) for lr in (high, 0.7 * low, low))
    kept = {MICROBATCHED[0]: Kept(tried, (run_of(1, 9.0),)), REPLICAS: Kept(tried)}
    jobs = [(REPLICAS, 1), (MICROBATCHED[0], 2), (REPLICAS, 2)]
    assert [(job.line, job.seed) for job in ready(QUICK, kept)] == jobs
    assert {job.lr for job in ready(QUICK, kept)} == {0.7 * low}, "of equal ones the lowest, whoever came first"


def test_segments_and_backprop_are_done_before_anything_else() -> None:
    tried = tuple(Trained(lr, 1.0, None, curve_of(50.0)) for lr in (*QUICK.rates, 0.7 * QUICK.rates[0]))
    whole = local_line(QUICK, 3, "copy")
    kept = {line: Kept() for line in lines(QUICK)} | {BACKPROP: Kept(tried), whole: Kept()}
    order = list(dict.fromkeys(job.line.name for job in ready(QUICK, kept)))
    segments = [f"2 segments, {head}" for head in HEADS]
    assert order[:6] == [*segments, whole.name, BACKPROP.name], "a try of any comes before a run"
    assert order[6:10] == [*(line.name for line in MICROBATCHED), REPLICAS.name]
    assert order[10:14] == [f"block, {head}" for head in HEADS]
    assert order[14:] == [line.name for line in lines(QUICK) if line.every is not None]
    assert len(order) == 18


def test_more_segments_come_with_the_head_whose_try_is_best_for_two() -> None:
    low, high = QUICK.rates
    errors = {local_line(QUICK, 2, head): 24.0 - index for index, head in enumerate(HEADS)}

    def read(line: Line) -> Kept:
        if line not in errors:
            return Kept()
        rates = ((low, 1.0), (high, 1.0), (low, 0.3))
        tries = tuple(Trained(lr, head_lr, None, curve_of(errors[line])) for lr, head_lr in rates)
        return Kept(tries, (run_of(1, 50.0),))

    assert best_head(QUICK, read) == HEADS[-1]
    assert [line.name for line in all_lines(QUICK, read)][-1] == f"3 segments, {HEADS[-1]}"
    assert all_lines(QUICK, lambda line: Kept()) == lines(QUICK)
    assert best_head(QUICK, lambda line: replace(read(line), tries=read(line).tries[:2])) is None
    late = replace(QUICK, cuts=(("late", 2, 3), ("early", (1, 3), None)))
    assert [line.name for line in all_lines(late, read)][-3:] == [
        f"2 late segments, {HEADS[-1]}",
        f"2 early segments, {HEADS[-1]}",
        f"3 segments, {HEADS[-1]}",
    ]
    tries_and_runs = 3 * QUICK.tuning_epochs + QUICK.seeds * QUICK.config.train.epochs
    assert epochs_left(late, {}) - epochs_left(QUICK, {}) == 2 * tries_and_runs, "counted before the head is known"


def test_what_is_left_is_counted_in_epochs() -> None:
    kept = {line: Kept() for line in lines(QUICK)}
    # Two rates, one more of them or of the heads' factors, an epoch each; two seeds of two epochs.
    count = (2 * len(HEADS) + 1 + 9) * (3 + 4)
    assert epochs_left(QUICK, kept) == count
    kept[BACKPROP] = Kept((Trained(0.1, 1.0, None, curve_of(50.0)),), (run_of(1, 9.0),))
    assert epochs_left(QUICK, kept) == count - 3


def test_curves_are_kept_and_read_again(tmp_path: Path) -> None:
    ledger, line = Ledger(tmp_path, QUICK), local_line(QUICK, 2, "copy")
    assert ledger.read(line) == Kept()
    ledger.add(Job(line, 0.1, 0.3), curve_of(9.0, 8.0), HERE)
    for seed in (2, 1):
        ledger.add(Job(line, 0.1, 0.3, seed), curve_of(7.5, 6.25), HERE)
    kept = ledger.read(line)
    assert (kept.best().lr, kept.best().head_lr) == (0.1, 0.3) and [one.seed for one in kept.runs] == [1, 2]
    ledger.add(Job(line, 0.1, 0.3, 2), curve_of(7.0, 6.0), HERE)
    ledger.add(Job(line, 0.1, 0.3), curve_of(9.0, 7.0), HERE)
    again = ledger.read(line)
    assert (len(again.tries), [one.error for one in again.runs]) == (1, [6.25, 6.0]), "the same training counts once"
    assert kept.runs[0].curve == curve_of(7.5, 6.25) and ledger.path(line).name == "2-segments-copy.json"
    assert not list(tmp_path.glob("**/*.part"))


def test_every_training_is_kept_with_where_it_was_made(tmp_path: Path) -> None:
    """A file goes on growing on another machine, or after another commit."""
    ledger, elsewhere = Ledger(tmp_path, QUICK), replace(HERE, machine={"cpu": "another"}, commit="another")
    ledger.add(JOB, curve_of(9.0), elsewhere)
    ledger.add(replace(JOB, seed=2), curve_of(8.0), HERE)
    assert [one.origin for one in ledger.read(BACKPROP).runs] == [elsewhere, HERE]
    file = json.loads(ledger.path(BACKPROP).read_text())
    assert file["commit"] == HERE.commit, "the file's is that of the newest"


def test_trainings_kept_without_their_origin_stay_as_they_are(tmp_path: Path) -> None:
    """As all were before each had its own."""
    ledger = Ledger(tmp_path, QUICK)
    ledger.add(JOB, curve_of(9.0), HERE)
    path = ledger.path(BACKPROP)
    file = json.loads(path.read_text())
    del file["runs"][0]["origin"]
    path.write_text(json.dumps(file))
    assert ledger.read(BACKPROP).runs == (Trained(0.1, 1.0, 1, curve_of(9.0)),)
    ledger.add(replace(JOB, seed=2), curve_of(8.0), HERE)
    again = json.loads(path.read_text())
    assert again["runs"][0] == file["runs"][0] and again["runs"][1]["origin"] == asdict(HERE)
    path.write_text(json.dumps(again | {"runs": [file["runs"][0] | {"origin": {"machine": {}}}]}))
    with pytest.raises(DataError, match=r"backprop\.json cannot be read as curves of a race \('versions'\)"):
        ledger.read(BACKPROP)


def test_every_file_of_the_repositorys_race_is_read() -> None:
    kept = ROOT / "benchmarks" / "results" / "time-to-accuracy"
    for task in (FASHION, CIFAR):
        ledger = Ledger(kept, task)
        known = {ledger.path(line) for line in all_lines(task, ledger.read) if ledger.read(line) != Kept()}
        assert {*(kept / task.name).glob("*.json")} == known | {kept / task.name / f"{n}.json" for n in MEASURED}
        assert read_speeds(kept / task.name / "speed.json", task, all_lines(task, ledger.read))[0]
        assert read_emulated(kept / task.name / "emulated.json", task, all_lines(task, ledger.read))


def test_curves_of_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    line = local_line(QUICK, 2, "copy")
    Ledger(tmp_path, QUICK).add(Job(line, 0.1, 0.3), curve_of(9.0), HERE)
    other = replace(QUICK, config=override(QUICK.config, {"batch_size": 16, "data_dir": "elsewhere"}), looks=3)
    told = f"was made with other settings {re.escape('(batch_size, looks)')}; remove it to make it anew$"
    with pytest.raises(DataError, match=told):
        Ledger(tmp_path, other).read(line)
    wider = replace(QUICK, rates=(*QUICK.rates, 0.5))
    with pytest.raises(DataError, match=r"made with other settings \(rates\)"):  # the best might be another
        Ledger(tmp_path, wider).read(line)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, QUICK)
    path = ledger.path(BACKPROP)
    path.parent.mkdir()
    told = r"backprop\.json cannot be read as {} of a race .*; mend or remove it$".format
    for damaged in ('{"settings": {}, "tries": [3]}', "{", "[]", '{"settings": 3}'):
        path.write_text(damaged)
        with pytest.raises(DataError, match=told("curves")):
            ledger.read(BACKPROP)
        with pytest.raises(DataError, match=told("speeds")):
            read_speeds(path, QUICK, [])
        with pytest.raises(DataError, match=told("emulated devices")):
            read_emulated(path, QUICK, [])


def test_speeds_and_emulated_devices_are_kept_and_read_again(tmp_path: Path) -> None:
    speeds = {"backprop, one process": Speed((0.5, 0.25), 400.0, None), "other": Speed((1.0,), 1.0, 2.5)}
    path, none = tmp_path / "kept.json", tmp_path / "none.json"
    keep_speeds(path, QUICK, [BACKPROP, MICROBATCHED[-1]], speeds, HERE)
    assert read_speeds(path, QUICK, lines(QUICK)) == (speeds, HERE)
    assert read_speeds(none, QUICK, []) == ({}, None)
    with pytest.raises(DataError, match=r"made with other settings \(train_limit\)"):
        read_speeds(path, replace(QUICK, timed_steps=4), [])
    with pytest.raises(DataError, match=r"made with other settings \(backprop, 8 microbatches\)"):
        read_speeds(path, QUICK, [BACKPROP, replace(MICROBATCHED[-1], parts=4)])
    emulated = [Emulated(2, "block, copy", "block, copy", (0.5, 0.6))]
    line = local_line(QUICK, None, "copy")
    keep_emulated(path, QUICK, [line], emulated, HERE)
    assert read_emulated(path, QUICK, [BACKPROP, line]) == emulated and read_emulated(none, QUICK, []) == []
    with pytest.raises(DataError, match=r"made with other settings \(block, copy\)"):
        read_emulated(path, QUICK, [replace(line, overrides=(*line.overrides, ("beta", 0.5)))])
    with pytest.raises(DataError, match=r"made with other settings \(emulated\)"):
        read_emulated(path, replace(QUICK, emulated=(2, 3)), [])


def test_seconds_of_another_machine_are_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few, measured = [BACKPROP], list[str]()
    speeds = {one.label: Speed((0.5,), 400.0, None) for one in entrants(QUICK, few)}

    def measure(task: Task, all_entrants: Sequence[Entrant], *rest: object) -> dict[str, Speed]:
        measured.append(task.name)
        return speeds

    monkeypatch.setattr(time_to_accuracy, "all_lines", lambda task, read: few)
    monkeypatch.setattr(time_to_accuracy, "measure_all", measure)
    path, ledger = tmp_path / "speed.json", Ledger(tmp_path, QUICK)
    keep_speeds(path, QUICK, few, speeds, HERE)
    found = time_to_accuracy._measured(QUICK, ledger, tmp_path, True, None)
    assert not measured and found.timed == HERE
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"machine": {"cpu": "another", "cores": 2, "devices": []}}))
    found = time_to_accuracy._measured(QUICK, ledger, tmp_path, True, "curves")
    assert not measured and found.timed is not None and found.timed.machine["cpu"] == "another", "told as it is"
    timed = time_to_accuracy._measured(QUICK, ledger, tmp_path, True, None).timed
    assert timed is not None and timed.machine == HERE.machine
    assert measured == [QUICK.name] and read_speeds(path, QUICK, few) == (speeds, timed)


def test_a_stopped_measurement_of_seconds_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few, given = [BACKPROP], list[Begun | None]()
    half = Begun({one.label: None for one in entrants(QUICK, few)}, (Round({}, {}),))
    speeds = {one.label: Speed((0.5,), 400.0, None) for one in entrants(QUICK, few)}

    def measure(
        task: Task, everyone: Sequence[Entrant], rounds: int, begun: Begun | None, keep: Callable[[Begun], None]
    ) -> dict[str, Speed]:
        given.append(begun)
        if begun is None:
            keep(half)
            raise KeyboardInterrupt
        return speeds

    monkeypatch.setattr(time_to_accuracy, "all_lines", lambda task, read: few)
    monkeypatch.setattr(time_to_accuracy, "measure_all", measure)
    with pytest.raises(KeyboardInterrupt):
        time_to_accuracy._measured(QUICK, Ledger(tmp_path, QUICK), tmp_path, True, "speed")
    assert time_to_accuracy._measured(QUICK, Ledger(tmp_path, QUICK), tmp_path, True, "speed").speeds == speeds
    assert given == [None, half]


def test_rounds_are_gone_on_with_where_they_were_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same code, of the same entrants; they are gone when all is kept."""
    path, few = tmp_path / "speed.json", [BACKPROP, local_line(QUICK, 2, "copy")]
    everyone = entrants(QUICK, few)
    splits = {entrant.label: (1, 3) if entrant.method.processes > 1 else None for entrant in everyone}
    begun = Begun(splits, (Round({entrant.label: 0.5 for entrant in everyone}, {everyone[0].label: 2.0}),))
    assert read_begun(path, QUICK, few, everyone, HERE) is None
    keep_begun(path, QUICK, few, begun, HERE)
    assert read_begun(path, QUICK, few, everyone, HERE) == begun
    assert read_speeds(path, QUICK, few) == ({}, None), "nothing of it is told"
    assert read_begun(path, QUICK, few, everyone[1:], HERE) is None
    assert read_begun(path, QUICK, few, everyone, replace(HERE, commit="of a page")) == begun
    assert read_begun(path, QUICK, few, everyone, replace(HERE, machine={"cpu": "another"})) is None
    with monkeypatch.context() as patch:
        patch.setattr(speed_files, "code_digest", lambda: "of other files, no more committed than these were")
        assert read_begun(path, QUICK, few, everyone, HERE) is None
    with pytest.raises(DataError, match=r"speed\.begun\.json was made with other settings \(train_limit\)"):
        read_begun(path, replace(QUICK, timed_steps=4), few, everyone, HERE)
    keep_speeds(path, QUICK, few, {}, HERE)
    assert not begun_path(path).exists()
    begun_path(path).write_text("{}")
    with pytest.raises(DataError, match=r"speed\.begun\.json cannot be read as speeds under way of a race"):
        read_begun(path, QUICK, few, everyone, HERE)


def test_memory_of_a_gpu_that_is_not_the_current_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process has its own, and after a training the first is everybody's current one again."""
    held = {None: 1e6, 0: 1e6, 1: 7e6}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda gpu=None: held[gpu])
    assert footprint._high_water(Member(1, 2, 1)) == 8.0


def test_joules_are_those_of_all_processors_or_none(tmp_path: Path) -> None:
    assert joules(tmp_path) is None
    for name, value in (("intel-rapl:0", "3000000\n"), ("intel-rapl:1", "500000\n"), ("intel-rapl:0:0", "9\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(value)
    assert joules(tmp_path) == 3.5
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("")
    assert joules(tmp_path) is None


@pytest.mark.parametrize("task", [CIFAR, FASHION, QUICK], ids=lambda task: task.name)
def test_every_line_is_a_configuration_and_every_entrant_has_its_work(task: Task) -> None:
    known = [*lines(task), *(local_line(task, count, "copy") for count in task.segments)]
    for line in known:
        for seed in (None, 1):
            config_of(task, Job(line, task.rates[0], task.head_rates[0], seed))
    everyone = entrants(task, known)
    assert len({entrant.label for entrant in everyone}) == len(everyone)
    assert all(task.config.train.batch_size % entrant.method.microbatches == 0 for entrant in everyone), "equal ones"
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
    ends = stage_costs(QUICK, BACKPROP, 2, chunks=2)
    blocks = stage_costs(QUICK, BACKPROP, 4)
    assert ends is not None and blocks is not None
    assert ends == [blocks[0] + blocks[3], blocks[1] + blocks[2]], "a V"
    assert stage_costs(QUICK, BACKPROP, 3, chunks=2) is None


def test_schedules_have_a_microbatch_for_each_chunk_at_least() -> None:
    labels = [entrant.label for entrant in entrants(CIFAR, MICROBATCHED)]
    assert labels == [
        "backprop, GPipe, 2 microbatches",
        "backprop, 1F1B, 2 microbatches",
        *(
            f"backprop, {name}, {count} microbatches"
            for count in (4, 8)
            for name in ("GPipe", "1F1B", "ZBVZeroBubble")
        ),
    ]
    counts = [entrant.method.microbatches for entrant in entrants(CIFAR, MICROBATCHED)]
    assert counts == [2, 2, 4, 4, 4, 10, 10, 10], "500 images are not eight equal parts"
    assert all(entrant.is_pipelined_backprop for entrant in entrants(CIFAR, MICROBATCHED))


def test_averages_are_in_the_seconds_of_a_step() -> None:
    def timed(method: Method) -> float:
        return 2.0 if method.every > 100 else 2.0 + 6.0 / method.every

    local = next(line for line in lines(QUICK) if line.every == 30)
    (entrant,) = entrants(QUICK, [local])
    assert with_averages(entrant.method, timed) == 2.2
    assert with_averages(replace(entrant.method, kind="ddp"), timed) == timed(entrant.method)


@pytest.mark.parametrize("devices", sorted({*CIFAR.emulated, *FASHION.emulated, *QUICK.emulated}))
def test_emulated_batches_are_cut_into_equal_microbatches(devices: int) -> None:
    (contest, *_) = [contest for _, contest in contests(CIFAR, [], devices, 1)]
    assert BATCH % contest.microbatches == 0 and contest.microbatches >= 4 * devices


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


@pytest.mark.parametrize("momentum", [0.1, None])
def test_what_is_computed_again_leaves_no_trace(momentum: float | None) -> None:
    def trained(again: bool) -> torch.nn.Module:
        torch.manual_seed(1)
        norm = torch.nn.BatchNorm1d(4, momentum=momentum)
        block = torch.nn.Sequential(torch.nn.Linear(3, 4), norm, Dropout(0.5))
        model = Checkpointed(block) if again else block
        for step in range(3):
            x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step)).requires_grad_()
            model(x).square().sum().backward()
        return block

    plain, again = trained(False), trained(True)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)  # type: ignore[arg-type]  # there are gradients


def with_one_thread(member: Member, method: Method, config: RunConfig) -> tuple[float | None, ...]:
    torch.set_num_threads(1)
    return train_method(replace(member, threads=1), method, config).errors


@pytest.mark.bench
@pytest.mark.usefixtures("forked_crews")
def test_one_process_learns_what_several_would() -> None:
    others = [line for line in lines(QUICK) if line.every is not None]
    soon = [replace(line, every=3) for line in others[::2]]  # within the few steps of a test
    with Crew(2) as team:
        for entrant in entrants(QUICK, [REPLICAS, *MICROBATCHED, *soon]):
            found = team.call(with_one_thread, entrant.method, CONFIG)
            curve = train_curve(ALONE, entrant.line, CONFIG, 1)
            assert all(errors == curve.errors for errors in found), entrant.label
    assert {line.diloco for line in soon} == {False, True}


def test_what_is_averaged_differs_from_what_is_not() -> None:
    local = next(line for line in lines(QUICK) if line.every is not None)
    never, often = (train_curve(ALONE, replace(local, every=every), CONFIG, 1).errors for every in (99, 1))
    diloco = train_curve(ALONE, replace(local, every=1, diloco=True), CONFIG, 1).errors
    replicas = train_curve(ALONE, REPLICAS, CONFIG, 1).errors
    assert len({never, often, diloco, replicas}) >= 3


@pytest.mark.bench
@pytest.mark.usefixtures("forked_crews")
def test_jobs_are_done_once_and_a_failure_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [BACKPROP, local_line(QUICK, 2, "linear")]
    monkeypatch.setattr(order, "all_lines", lambda task, read: few)
    ledger, told = Ledger(tmp_path, QUICK), list[Job]()
    training.train_all(QUICK, ledger, [0, 0], lambda job, curve, left: told.append(job))
    assert len(set(told)) == len(told) == 2 * (3 + 2)
    before = [ledger.read(line) for line in few]
    training.train_all(QUICK, ledger, [0], lambda job, curve, left: told.append(job))
    assert len(told) == 10 and [ledger.read(line) for line in few] == before
    ledger.path(BACKPROP).unlink()
    broken = replace(QUICK, config=override(QUICK.config, {"train_limit": 326}))  # parts of a single sample
    monkeypatch.setattr(order, "all_lines", lambda task, read: [MICROBATCHED[-1]])
    with pytest.raises(CrewError, match="Expected more than 1 value per channel"):
        training.train_all(broken, Ledger(tmp_path / "other", broken), [0, 0], lambda job, curve, left: None)


def test_a_training_is_kept_with_the_commit_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody commits while it trains."""
    commits = iter(["before", "after"])
    monkeypatch.setattr(training, "provenance", lambda: replace(HERE, commit=next(commits)))

    def call(core: Core, *arguments: object) -> Curve:
        next(commits)
        return curve_of(9.0)

    monkeypatch.setattr(Core, "call", call)
    monkeypatch.setattr(training, "ready", lambda task, kept, busy: [] if busy or kept[BACKPROP].runs else [JOB])
    ledger = Ledger(tmp_path, QUICK)
    training.train_all(QUICK, ledger, [0], lambda job, curve, left: None)
    assert json.loads(ledger.path(BACKPROP).read_text())["commit"] == "before"


def test_a_file_that_cannot_be_read_ends_the_race(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, QUICK)
    ledger.path(BACKPROP).parent.mkdir()
    ledger.path(BACKPROP).write_text("{")
    with pytest.raises(DataError, match="mend or remove it"):
        training.train_all(QUICK, ledger, [0, 0], lambda job, curve, left: None)


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
    monkeypatch.setattr(jobs, "wait", interrupted)
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


def test_without_curves_nothing_is_told_and_nothing_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(time_to_accuracy, "emulate", lambda *arguments: [])
    assert main(["time-to-accuracy", "--quick", "--part", "emulated", "--output", str(tmp_path)]) == 1
    assert "no run of backprop is kept yet, so that nothing can be told" in capfd.readouterr().err
    assert not (tmp_path / "time-to-accuracy.json").exists()


def test_a_part_that_there_is_not_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["time-to-accuracy", "--part", "all"]) == 2
    assert capfd.readouterr().err == "error: --part is 'all'; choose one of curves, speed, emulated\n"
