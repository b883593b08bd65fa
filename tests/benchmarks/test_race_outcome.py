"""What is made of the curves and speeds of a race."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest

from benchmarks.harness.figures import paired
from benchmarks.harness.report import Provenance
from benchmarks.race.emulated import Emulated
from benchmarks.race.entrants import entrants
from benchmarks.race.ledger import Kept, Trained
from benchmarks.race.lines import BACKPROP, MICROBATCHED, REPLICAS, Line, local_line
from benchmarks.race.outcome import Found, curves_of, final_errors, rows_of, steps_to, targets_of, wanted_errors
from benchmarks.race.speed import Speed
from tests.support.races import QUICK, curve_of, run_of


def found_of(errors: Mapping[Line, list[tuple[float, ...]]], seconds: Mapping[str, float]) -> Found:
    tries = {line: (Trained(0.1, 1.0, None, curve_of(50.0 + index)),) for index, line in enumerate(errors)}
    kept = {
        line: Kept(tries[line], tuple(run_of(seed, *row) for seed, row in enumerate(rows, 1)))
        for line, rows in errors.items()
    }
    everyone = entrants(QUICK, list(errors))
    speeds = {entrant.label: Speed((seconds[entrant.line.name],), 100.0, None) for entrant in everyone}
    works = {entrant.label: 1.0 for entrant in everyone}
    timed = Provenance({"cores": 2}, {"torch": "3"}, None)
    return Found(
        QUICK, kept, everyone, speeds, timed, works, [Emulated(2, "2 segments, copy", "2 segments, copy", (0.5,))]
    )


MARK = "the 21.00 % that backprop has after 80 % of its run"
TWO, BLOCK = local_line(QUICK, 2, "copy"), local_line(QUICK, None, "copy")
FOUND = found_of(
    {
        BACKPROP: [(50.0, 40.0, 30.0, 21.0, 10.0), (50.0, 40.0, 30.0, 21.0, 10.5)],
        MICROBATCHED[-1]: [(50.0, 40.0, 30.0, 20.0, 10.0), (50.0, 40.0, 30.0, 21.0, 10.0)],
        REPLICAS: [(50.0, 40.0, 30.0, 20.0, 10.0), (50.0, 40.0, 30.0, 20.0, 10.0)],
        TWO: [(50.0, 40.0, 30.0, 21.0, 10.5), (50.0, 40.0, 30.0, 21.0, 11.5)],
        BLOCK: [(60.0, 50.0, 40.0, 30.0, 15.0), (60.0, 50.0, 40.0, 30.0, 25.0)],
    },
    {
        "backprop": 1.0,
        "backprop, 8 microbatches": 2.0,
        "backprop, 2 replicas": 1.5,
        "2 segments, copy": 0.6,
        "block, copy": 0.5,
    },
)


def test_steps_are_counted_until_the_error_stays_small() -> None:
    curve = curve_of(50.0, 20.0, 30.0, 10.0)
    assert [steps_to(curve, wanted) for wanted in (60, 30, 20, 10, 9)] == [10, 20, 40, 40, None]


def test_the_wanted_errors_are_what_backprop_has_come_to() -> None:
    ten = (90.0, 80.0, 70.0, 60.0, 50.0, 40.0, 30.0)
    runs = [run_of(1, *ten, 18.0, 14.0, 10.0), run_of(2, *ten, 20.0, 90.0, 12.0)]
    assert wanted_errors(runs) == {60: 40.0, 80: 19.0, 90: 52.0}, "the mean there, whatever a seed does afterwards"
    assert wanted_errors([run_of(1, 30.0)]) == {60: 30.0, 80: 30.0, 90: 30.0}
    rows = {row.label: row for row in rows_of(FOUND)}
    backprop = rows["digits-mlp: backprop, one process"]
    assert backprop.settings["wanted_errors"] == {"60": 30.0, "80": 21.0, "90": 21.0}
    assert backprop.figures["steps_to_80"].median == 40


def test_differences_are_of_equal_seeds() -> None:
    gap = paired(final_errors(FOUND.runs(TWO)), final_errors(FOUND.runs(BACKPROP)))
    assert gap is not None and gap.mean == 0.75 and gap.standard_error == pytest.approx(0.25)
    assert paired(final_errors(FOUND.runs(TWO)), final_errors(FOUND.runs(BACKPROP)[1:])) is None


def test_rows_tell_errors_steps_seconds_and_what_was_chosen() -> None:
    rows = {row.label: row for row in rows_of(FOUND)}
    two = rows["digits-mlp: 2 segments, copy, pipeline"]
    assert two.figures["steps_to_80"].median == 40 and two.figures["seconds_to_80"].median == 24.0
    block = rows["digits-mlp: block, copy, one process"]
    assert "steps_to_60" in block.figures and "steps_to_80" not in block.figures, "a seed ends with 25"
    assert two.settings["timed"] == {"machine": {"cores": 2}, "versions": {"torch": "3"}, "commit": None}
    assert two.settings["minus_backprop"] == 0.75 and two.settings["lr"] == 0.1
    assert "minus_backprop" not in rows["digits-mlp: backprop, one process"].settings
    # 40 steps that take half as long, of backprop's 40
    emulated = rows["digits-mlp: emulated, 2 devices: 2 segments, copy"]
    assert emulated.figures["time_of_one_device"].median == pytest.approx(0.5)
    assert curves_of(FOUND)["2 segments, copy"][-1] == (50.0, 11.0)
    assert rows_of(replace(FOUND, kept={line: Kept() for line in FOUND.kept})) == []


def test_seconds_spread_as_steps_and_their_paces_do_and_are_held_against_those_of_the_same_round() -> None:
    """A round in which everything took twice as long makes seconds spread, and no ratio."""
    twice = {
        label: replace(speed, seconds=(*speed.seconds, 2 * speed.seconds[0])) for label, speed in FOUND.speeds.items()
    }
    rows = {row.label: row for row in rows_of(replace(FOUND, speeds=twice))}
    taken = rows["digits-mlp: 2 segments, copy, pipeline"].figures["seconds_to_80"]
    assert (taken.median, taken.minimum, taken.maximum, taken.n) == (36.0, 24.0, 48.0, 4)
    assert targets_of(replace(FOUND, speeds=twice)) == targets_of(FOUND)


def test_targets_hold_the_fastest_against_the_fastest() -> None:
    targets = {target.name: target for target in targets_of(FOUND)}
    told = f"2. digits-mlp: time to {MARK}, 2 segments, copy, pipeline, over "
    assert [name for name in targets if name.startswith("2.")] == [
        f"{told}the best pipelined backprop",
        f"{told}DDP",
        f"{told}backprop in one process",
    ]
    assert targets[f"{told}DDP"].measured == pytest.approx(0.4) and targets[f"{told}DDP"].met
    assert targets[f"{told}backprop in one process"].measured == pytest.approx(0.6)
    error = targets["1. digits-mlp: 2 segments, copy: test error minus backprop's, points ± 0.25"]
    assert (error.measured, error.met) == (0.75, False)
    third = targets[f"3. digits-mlp: block, copy: steps to {MARK}, over backprop's"]
    assert math.isinf(third.measured) and not third.met


def with_runs(line: Line, runs: Mapping[int, tuple[float, ...]]) -> Found:
    made = tuple(run_of(seed, *errors) for seed, errors in runs.items())
    return replace(FOUND, kept={**FOUND.kept, line: replace(FOUND.kept[line], runs=made)})


@pytest.mark.parametrize(
    ("seeds", "ratio"),
    [
        # Seeds 2 to 4 against backprop's 1 and 2 have one in common: the means, 30 of 40 steps.
        ((2, 3, 4), 0.6 * 30 / 40),
        # Seeds 1, 2 and 9: the last one, which is late, has no partner.
        ((1, 2, 9), 0.6 * 25 / 40),
    ],
)
def test_ratios_are_of_the_seeds_that_both_have(seeds: tuple[int, int, int], ratio: float) -> None:
    early, later, late = (50.0, 20.0, 20.0, 20.0, 10.0), (50.0, 40.0, 20.0, 20.0, 10.0), (50.0, 40.0, 30.0, 21.0, 10.0)
    found = with_runs(TWO, dict(zip(seeds, (early, later, late), strict=True)))
    (target,) = [one for one in targets_of(found) if one.name.endswith("over backprop in one process")]
    assert target.measured == pytest.approx(ratio)


def test_the_best_of_a_few_schedules_is_called_so() -> None:
    """As long as not all that have been trained are timed."""

    def name(found: Found) -> str:
        (told,) = [one.name for one in targets_of(found) if "pipelined backprop" in one.name]
        return told.rpartition("over ")[2]

    assert name(FOUND) == "the best pipelined backprop"
    new = entrants(QUICK, [MICROBATCHED[0]])
    assert name(replace(FOUND, entrants=[*FOUND.entrants, *new], kept={**FOUND.kept, MICROBATCHED[0]: Kept()})) == (
        "the best pipelined backprop"
    ), "it has not been trained"
    trained = {**FOUND.kept, MICROBATCHED[0]: FOUND.kept[MICROBATCHED[-1]]}
    partly = replace(FOUND, entrants=[*FOUND.entrants, *new], kept=trained)
    assert name(partly) == "the best pipelined backprop (3 of 5 timed)"


def test_held_out_samples_choose_who_stands_for_a_cut() -> None:
    """Not the test set: the linear head has the worse try and the better runs."""
    linear = local_line(QUICK, 2, "linear")
    better = Kept((Trained(0.1, 1.0, None, curve_of(60.0)),), (run_of(1, 1.0), run_of(2, 1.0)))
    found = replace(FOUND, kept={**FOUND.kept, linear: better})
    assert [target for target in targets_of(found) if target.name.startswith("1.")] == targets_of(FOUND)[:1]


def test_a_late_cut_is_held_against_backprop_where_its_try_is_better() -> None:
    late = local_line(QUICK, 2, "copy", 3, "late")
    better = Kept((Trained(0.1, 1.0, None, curve_of(40.0)),), (run_of(1, 10.0), run_of(2, 10.5)))
    targets = targets_of(replace(FOUND, kept={**FOUND.kept, late: better}))
    first, *others = (target for target in targets if target.name[:2] in ("1.", "2."))
    assert first.name.startswith("1. digits-mlp: 2 late segments, copy: ") and first.met
    assert all("2 segments, copy, pipeline" in target.name for target in others), "a pipeline wants balance"


@pytest.mark.parametrize(("pace", "cut"), [(0.9, "2 early segments"), (1.1, "2 segments")])
def test_the_pipeline_is_that_of_the_cut_whose_steps_are_the_shortest(pace: float, cut: str) -> None:
    """Whatever its error."""
    early = local_line(QUICK, (1, 3), "copy", where="early")
    worse = Kept((Trained(0.1, 1.0, None, curve_of(90.0)),), FOUND.kept[TWO].runs)
    label = "2 segments, copy, pipeline"
    speed = replace(FOUND.speeds[label], seconds=tuple(pace * each for each in FOUND.speeds[label].seconds))
    found = replace(
        FOUND,
        entrants=[*FOUND.entrants, *entrants(QUICK, [early])],
        kept={**FOUND.kept, early: worse},
        speeds={**FOUND.speeds, "2 early segments, copy, pipeline": speed},
    )
    seconds = [target for target in targets_of(found) if target.name.startswith("2.")]
    before = [target.measured for target in targets_of(FOUND) if target.name.startswith("2.")]
    assert all(f"{cut}, copy, pipeline" in target.name for target in seconds)
    assert [target.measured for target in seconds] == pytest.approx([min(pace, 1.0) * each for each in before])


def test_blocks_that_reach_the_error_are_held_against_backprop() -> None:
    rows = [(50.0, 40.0, 30.0, 25.0, 10.0), (50.0, 40.0, 30.0, 25.0, 10.0)]
    kept = {**FOUND.kept, BLOCK: replace(FOUND.kept[BLOCK], runs=tuple(run_of(s, *r) for s, r in enumerate(rows, 1)))}
    third = {target.name: target.measured for target in targets_of(replace(FOUND, kept=kept))[-2:]}
    assert third == {
        f"3. digits-mlp: block, copy: steps to {MARK}, over backprop's": 50 / 40,
        f"3. digits-mlp: block, copy: seconds to {MARK}, over one process of backprop": 25 / 40,
    }


def test_blocks_are_judged_by_the_head_that_is_the_least_work() -> None:
    """Whatever held-out samples say: the linear head has the worse try here."""
    linear = local_line(QUICK, None, "linear")
    worse = Kept((Trained(0.1, 1.0, None, curve_of(90.0)),), FOUND.kept[TWO].runs)
    both = [*FOUND.entrants, *entrants(QUICK, [linear])]
    works = {entrant.label: 0.5 if entrant.line == linear else 1.0 for entrant in both}
    found = replace(FOUND, kept={**FOUND.kept, linear: worse}, entrants=both, works=works)
    assert targets_of(found)[-1].name == f"3. digits-mlp: block, linear: steps to {MARK}, over backprop's"
