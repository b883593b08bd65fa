"""The benchmark harness: the commands it answers, and what it writes."""

from __future__ import annotations

import json
import platform
import re
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import __main__ as command
from benchmarks.__main__ import EXPERIMENTS, main
from benchmarks.contenders import handover
from benchmarks.contenders.methods import Method
from benchmarks.experiments import gpu, memory, queue, scaling, schedule, throughput, time_to_accuracy
from benchmarks.harness import report
from benchmarks.harness.figures import ratio, summarize
from benchmarks.harness.pictures import Curves, draw
from benchmarks.harness.report import Provenance, Result, Row, at_least, at_most, bars, publish, show
from benchmarks.harness.tables import between_marks, tables

ORIGIN = Provenance({"cores": 2}, {"torch": "3"}, "abc")


def test_list_names_every_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*EXPERIMENTS, "paper"]


def test_unknown_experiment_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["speed"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: there is no experiment 'speed'; choose") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["queue", "--processes", "4"], "--processes is for throughput, not for queue"),
        (["throughput", "--processes", "1"], "--processes is 1; give a whole number from 2 to 9"),
        (["throughput", "--processes", "10"], "--processes is 10; give a whole number from 2 to 9"),
    ],
)
def test_a_wrong_number_of_processes_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_the_quick_forms_repeat_often_enough_for_a_rough_figure() -> None:
    """Their sizes are made smaller where whole experiments are tested."""
    assert throughput._QUICK.rounds == 3
    assert all(contest.rounds >= 3 for contest in schedule.contests(True))
    assert scaling._QUICK.repetitions >= 5 and set(scaling._QUICK.axes) == {"blocks", "width", "batch", "stages"}
    assert all(load.rounds >= 3 for load in queue.loads(quick=True))
    assert all(case.rounds >= 3 for case in handover.cases(quick=True))
    cases = [case for axis in memory._AXES.values() for case in axis]
    assert {case.model for case in cases} == {"vgg8b", "vgg11b", "vgg13", "vgg16"}
    assert {case.batch for case in cases} == {32, 64, 128, 256}
    assert {case.width for case in cases} == {0.25, 0.5, 1.0}


@pytest.mark.parametrize("count", range(2, throughput.MOST_PROCESSES + 1))
def test_schedules_get_equal_microbatches_whatever_the_number_of_processes(count: int) -> None:
    for size in (throughput._FULL, throughput._QUICK):
        found = {method.microbatches for method in throughput._methods(count, size)} - {1}
        assert found and all(size.batch % each == 0 and each >= count for each in found)


def test_on_more_gpus_than_there_are_blocks_for_some_stay_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):
        pass

    def methods(count: int, size: object) -> list[Method]:
        assert count == throughput.MOST_PROCESSES
        raise Asked

    monkeypatch.setattr(throughput, "processes", lambda: 16)
    monkeypatch.setattr(throughput, "_methods", methods)
    with pytest.raises(Asked):
        throughput.run(True)


def test_a_digest_of_the_code_tells_versions_without_a_commit_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_ROOT", tmp_path)
    module = tmp_path / "benchmarks" / "race" / "module.py"
    module.parent.mkdir(parents=True)
    found = set[str]()
    for text in ("a = 1\n", "a = 2\n", "a = 1\n"):
        module.write_text(text)
        found.add(report.code_digest.__wrapped__())
    assert len(found) == 2


def test_figures_are_median_least_greatest_and_count() -> None:
    figure = summarize([3.0, 1.0, 2.0, 10.0])
    assert (figure.median, figure.minimum, figure.maximum, figure.n) == (2.5, 1.0, 10.0, 4)


def test_ratios_are_taken_round_by_round() -> None:
    # Both double in the second round, as on a busy machine: the ratio stays.
    figure = ratio([1.0, 2.0, 1.2], [2.0, 4.0, 2.0])
    assert (figure.median, figure.minimum, figure.maximum, figure.n) == (0.5, 0.5, 0.6, 3)


def test_tables_quote_the_kept_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"samples_per_second": summarize([1800.0, 1759.4, 1700.0])}
    rows = [Row("one", {"model": "vgg8b"}, figures), Row("one: process 0")]
    targets = [
        at_least("2. second", 1, rows[0].figures["samples_per_second"]),
        at_most("1. first", 0.5, ratio([3], [4])),
    ]
    publish("throughput", "command", Result(rows, targets, bars("samples_per_second", rows)), tmp_path, ORIGIN)
    capsys.readouterr()
    assert main(["tables", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert between_marks(printed, "targets").splitlines()[2:] == [
        "| 1. first | at most 0.5 | 0.75 | **no** | throughput |",
        "| 2. second | at least 1 | 1,759 | yes | throughput |",
    ]
    assert between_marks(printed, "throughput").splitlines()[2:] == ["| one | 1,759 (1,700 to 1,800) |"]


DAMAGED = (
    "{",
    "[]",
    "{}",
    '{"rows": [], "targets": []}',  # no row to quote
    '{"rows": [{"label": "pred, pipeline"}], "targets": []}',
    '{"rows": [{"label": "one", "model": "vgg8b", "samples_per_second": {}}], "targets": []}',
    '{"rows": [{"label": "one", "model": "vgg8b"}], "targets": [{"name": "1. first"}]}',
)


@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_results_are_named_in_one_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "throughput.json").write_text(text)
    assert main(["tables", "--output", str(tmp_path)]) == 2
    said = capsys.readouterr()
    told = (
        rf"error: {tmp_path}/throughput\.json cannot be read as results of an experiment \(.*\); mend or remove it\n"
    )
    assert re.fullmatch(told, said.err) and said.out == ""


@pytest.mark.parametrize("place", ["", "none", "file"])
def test_a_folder_without_results_is_told(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / place
    assert main(["tables", "--output", str(folder)]) == 2
    told = f"error: {folder} holds no results of an experiment; give a folder that does with --output\n"
    assert capsys.readouterr() == ("", told)


def test_the_summary_picks_the_fastest_schedule(tmp_path: Path) -> None:
    rates = {"backprop, one process": 10.0, "backprop, 1F1B": 7.0, "backprop, GPipe": 8.0, "pred, pipeline": 14.0}
    speed = [
        Row(
            label,
            {"model": "vgg8b"},
            {"samples_per_second": summarize([r]), "speed_ratio_to_backprop": ratio([r], [10])},
        )
        for label, r in rates.items()
    ]
    publish("throughput", "command", Result(speed, [], bars("samples_per_second", speed)), tmp_path, ORIGIN)
    assert tables(tmp_path, ("throughput",))["summary"].splitlines() == [
        "|  | images a second, vgg8b | of backprop in one process |",
        "| --- | --- | --- |",
        "| backprop, one process | 10 | 1 |",
        "| backprop, GPipe, torch's fastest schedule | 8 | 0.8 |",
        "| pred, pipeline | 14 | 1.4 |",
    ]


def test_the_race_tells_of_the_heads_that_held_out_samples_chose(tmp_path: Path) -> None:
    def row(
        label: str, held_out: float, error: float, step: float | None = None, there: float | None = None, **more: float
    ) -> Row:
        figures = {"test_error_percent": summarize([error])}
        if step is not None:
            figures["step_seconds"] = summarize([step])
        if there is not None:
            figures["seconds_to_80"] = summarize([there])
        return Row(f"cifar10-fastnet: {label}", {"held_out_error_percent": held_out, **more}, figures)

    rows = [
        row("backprop, one process", 20, 12, 0.3),
        row("backprop, GPipe, 8 microbatches", 20, 12.5, 0.4, 80),
        row("backprop, 1F1B, 8 microbatches", 20, 12.5, 0.4, 70),
        row("backprop, 1F1B, 4 microbatches", 21, 12.6, 0.5, 60),  # a slower step, and there first
        row("2 segments, copy, pipeline", 19, 12.4, 0.2, minus_backprop=0.4, standard_error=0.1),
        row("2 segments, linear, pipeline", 20, 12.1, 0.1),  # better in the end, and not chosen
        row("block, copy, pipeline", 25, 16),  # not timed yet
        Row("other: backprop, DDP", {"held_out_error_percent": 1}, {"test_error_percent": summarize([1])}),
    ]
    publish("time-to-accuracy", "command", Result(rows, [], bars("test_error_percent", rows)), tmp_path, ORIGIN)
    assert tables(tmp_path, ("time-to-accuracy",))["race"].splitlines()[2:] == [
        "| backprop, one process | 12 |  |  | 0.3 |  |",
        "| backprop, 1F1B, 4 microbatches, torch's fastest schedule | 12.6 |  |  | 0.5 | 60 |",
        "| 2 segments, copy, pipeline | 12.4 | +0.40 ± 0.10 |  | 0.2 |  |",
        "| block, copy, pipeline | 16 |  |  |  |  |",
    ]
    rows.append(row("backprop, GPipe, 2 microbatches", 20, 12.1))
    publish("time-to-accuracy", "command", Result(rows, [], bars("test_error_percent", rows)), tmp_path, ORIGIN)
    assert tables(tmp_path, ("time-to-accuracy",))["race"].splitlines()[3] == (
        "| backprop, 1F1B, 4 microbatches, torch's fastest schedule (3 of 4 timed) | 12.6 |  |  | 0.5 | 60 |"
    )


def test_the_documents_quote_what_was_measured() -> None:
    root = Path(__file__).resolve().parents[2]
    kept = tables(root / "benchmarks" / "results", tuple(EXPERIMENTS))
    pages = {name: (root / name).read_text(encoding="utf-8") for name in ("README.md", "benchmarks/README.md")}
    quoted = {}
    for name in kept:
        page = "README.md" if name in ("summary", "race") else "benchmarks/README.md"
        assert [where for where, text in pages.items() if f"<!-- {name} -->" in text] == [page]
        quoted[name] = between_marks(pages[page], name)
    assert quoted == kept, "run `python -m benchmarks tables` and put each table between its marks"


def test_the_readme_says_what_local_learning_loses() -> None:
    root = Path(__file__).resolve().parents[2]
    found = json.loads((root / "benchmarks" / "results" / "time-to-accuracy.json").read_text(encoding="utf-8"))
    (lost,) = re.findall(r"^What is lost: .*?(?=\n\n)", (root / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    measured = [target["measured"] for target in found["targets"]]  # None of a mark that is never come to
    assert all(("never" if each is None else f"{each:.2f}") in lost for each in measured)


def test_curves_are_drawn(tmp_path: Path) -> None:
    panel = {f"curve {index}": [(1.0, 2.0 + index), (2.0, 4.0 + index)] for index in range(12)}
    draw("trial", Curves("blocks", "seconds", {"one": panel, "two": panel}, logarithmic=True), tmp_path / "trial.png")
    assert (tmp_path / "trial.png").stat().st_size > 5000


def test_targets_judge_the_median() -> None:
    figure = summarize([1.0, 2.0, 9.0])
    assert at_least("a", 2, figure).met and not at_least("a", 2.1, figure).met
    assert at_most("a", 2, figure).met and not at_most("a", 1.9, figure).met
    assert at_least("a", 30_000, figure).wanted == "at least 30000"


def test_report_holds_the_promised_keys_and_not_the_name_of_the_host(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = Row("one", {"batch": 8}, {"seconds": summarize([1.0, 2.0, 3.0])})
    rows = [row, Row("without figures")]
    result = Result(rows, [at_most("time", 1.5, row.figures["seconds"])], bars("seconds", rows))
    path = publish("trial", "python -m benchmarks trial", result, tmp_path / "new" / "folder", report.provenance())
    text = path.read_text(encoding="utf-8")
    found = json.loads(text)
    assert list(found) == ["schema", "name", "command", "machine", "versions", "commit", "rows", "targets"]
    assert (found["schema"], found["name"]) == (1, "trial")
    assert found["rows"][0] == {
        "label": "one",
        "batch": 8,
        "seconds": {"median": 2.0, "minimum": 1.0, "maximum": 3.0, "n": 3},
    }
    assert found["targets"] == [{"name": "time", "wanted": "at most 1.5", "measured": 2.0, "met": False}]
    assert set(found["machine"]) == {"cpu", "cores", "devices"} and found["versions"]["torch"]
    assert platform.node() not in text
    assert path.with_suffix(".png").stat().st_size > 1000
    show("trial", result)
    assert "MISSED: time: wanted at most 1.5, measured 2" in capsys.readouterr().out


def test_commit_is_left_open_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_ROOT", tmp_path)
    assert report._commit() is None


def test_the_commit_is_that_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody commits while an experiment runs."""
    commits = iter(["before", "after"])
    monkeypatch.setattr(report, "_commit", lambda: next(commits))

    def run(quick: bool) -> Result:
        next(commits)
        return made_up(quick)

    monkeypatch.setattr(schedule, "run", run)
    assert main(["schedule", "--output", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "schedule.json").read_text())["commit"] == "before"


def made_up(quick: bool, **given: object) -> Result:
    rows = [Row("one", {}, {"seconds": summarize([1.0])})]
    return Result(rows, [], bars("seconds", rows))


@pytest.mark.parametrize(
    ("place", "reason"), [("file", "File exists"), ("file/sub", "Not a directory"), ("/proc/no", "No such file")]
)
def test_a_folder_that_cannot_be_written_is_told_before_anything_is_measured(
    place: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / place
    monkeypatch.setattr(schedule, "run", lambda quick: pytest.fail("it was measured"))
    assert main(["schedule", "--quick", "--output", str(folder)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: --output {folder} cannot be written ({reason}")
    assert line.endswith("; choose another folder")


@pytest.mark.parametrize(
    ("module", "arguments", "folder"),
    [
        (throughput, ["throughput", "--processes", "2"], "runs/benchmarks"),
        (gpu, ["gpu", "--part", "steps"], "runs/benchmarks"),
        (gpu, ["gpu", "--part", "steps", "--output", "mine"], "mine"),
        (gpu, ["gpu"], "whole"),
        (time_to_accuracy, ["time-to-accuracy", "--part", "emulated"], "whole"),  # which tells of all parts
    ],
)
def test_a_part_does_not_replace_the_whole(
    module: ModuleType, arguments: list[str], folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "_RESULTS", tmp_path / "whole")
    monkeypatch.setattr(module, "run", made_up)
    assert main(arguments) == 0
    assert [path.parent for path in tmp_path.rglob("*.json")] == [tmp_path / folder]


def test_what_cannot_be_kept_on_the_way_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(quick: bool) -> Result:
        raise OSError(28, "No space left on device", "kept.json")

    monkeypatch.setattr(schedule, "run", full)
    assert main(["schedule", "--output", str(tmp_path)]) == 1
    told = "error: schedule ended early: [Errno 28] No space left on device: 'kept.json'\n"
    assert capfd.readouterr().err == told


def test_what_cannot_be_written_has_been_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The disk is full by then, say."""
    monkeypatch.setattr(schedule, "run", made_up)
    (tmp_path / "schedule.json" / "in the way").mkdir(parents=True)
    assert main(["schedule", "--output", str(tmp_path)]) == 1
    said = capfd.readouterr()
    assert "seconds" in said.out and "1 (1 to 1, n=1)" in said.out
    told = f"error: schedule cannot be written to {tmp_path} (Is a directory); what it found stands above\n"
    assert said.err == told and [path.name for path in tmp_path.iterdir()] == ["schedule.json"], "nothing half written"


def test_a_closed_terminal_does_not_keep_results_from_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(name: str, result: Result) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(schedule, "run", made_up)
    monkeypatch.setattr(command, "show", closed)
    with pytest.raises(BrokenPipeError):
        main(["schedule", "--output", str(tmp_path)])
    assert (tmp_path / "schedule.json").exists() and (tmp_path / "schedule.png").exists()
