"""The runner of the paper's experiments: which rows, what is kept of them, and what the page says of it."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from benchmarks.harness.figures import Difference
from benchmarks.harness.report import Provenance
from benchmarks.paper.behind import all_behind
from benchmarks.paper.command import main, render
from benchmarks.paper.course import courses
from benchmarks.paper.curves import figure
from benchmarks.paper.order import comparisons
from benchmarks.paper.page import page
from benchmarks.paper.results import Run, Setting, add, read, setting_of
from benchmarks.paper.rows import Plan, changes, plans, select, shortened
from benchmarks.paper.telling import Teller, duration
from benchmarks.paper.training import _SUMMED as SUMMED
from benchmarks.paper.training import Progress, TrainingFailed, _Seen, harvest
from benchmarks.paper.work import Clock, work
from pipeline.config.measured import read_measured
from pipeline.config.paper import experiments, first_of
from pipeline.config.recipes import list_recipes
from pipeline.config.toml import to_toml
from pipeline.errors import ConfigError, DataError
from tests.support.processes import ROOT

ORIGIN = Provenance({"cores": 2}, {"torch": "3"}, "abc")
MLP = "paper/fashion_mnist/mlp"


def a_run(seed: int = 1, error: float = 9.0, **given: Any) -> Run:
    values: dict[str, Any] = {
        "seed": seed,
        "test_error_percent": error,
        "best_test_error_percent": error,
        "train_error_percent": 3.0,
        "block_test_error_percent": [None, error],
        "train_seconds": 2.5,
        "processes": 1,
        "threads": [1],
        "device": "cpu",
        "precision": "fp32",
        "state_sha256": "0",
        "train_curve": [50.0, 3.0],
        "test_curve": [None, error],
        "command": "python -m benchmarks paper",
        "machine": {"cpu": "A Chip of 8 cores", "cores": 8, "devices": ["GPU 9"]},
        "versions": {"torch": "2"},
        "commit": "abc",
    }
    return Run(**{**values, **given})


def a_plan(row: str = f"{MLP}/pred", seeds: int = 1, scale: float = 1.0, *flags: str) -> Plan:
    return plans([row], seeds, scale, flags)[-1]


def mistake(*arguments: Any, **given: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        plans(*arguments, **given)
    return str(caught.value)


class TestRows:
    def test_a_pattern_names_a_table_a_network_or_a_loss(self) -> None:
        assert select(["table4/cifar10/mlp"]) == [
            f"table4/cifar10/mlp/{x}" for x in ("glob", "pred", "sim", "predsim")
        ]
        assert select(["table5"]) == [name for name in experiments() if name.startswith("table5/")]
        assert all(name.endswith("/predsim") for name in select(["*/predsim"]))
        assert select(["*"]) == list(experiments()) == select(["*/predsim", "*"]), "each once, in order"

    def test_a_pattern_that_names_none_is_told_with_the_nearest(self) -> None:
        with pytest.raises(
            ConfigError, match=r"--rows 'table4/cifar10/mpl/glob' names no experiment; near are table4/"
        ):
            select(["table5", "table4/cifar10/mpl/glob"])

    def test_milestones_keep_their_places_in_a_shortened_schedule(self) -> None:
        config = shortened(experiments()["table6/cifar100/vgg8b/sim"].config, 0.1)
        assert config.train.epochs == 40 and config.train.lr_milestones == (20, 30, 35, 38)
        assert config.data.classes_per_batch_until == 20

    def test_the_whole_schedule_is_the_recipes(self) -> None:
        assert all(shortened(found.config, 1.0) == found.config for found in experiments().values())

    @settings(deadline=None, derandomize=True, database=None)
    @given(st.sampled_from(list(experiments())), st.floats(1e-6, 1.0))
    def test_any_share_is_a_schedule(self, name: str, scale: float) -> None:
        train = shortened(experiments()[name].config, scale).train
        assert train.epochs >= 1 and all(1 <= epoch < train.epochs for epoch in train.lr_milestones)

    def test_seeds_come_one_after_another_and_equal_rows_once(self) -> None:
        found = plans(["paper/mnist/vgg8b/glob", "paper/mnist/mlp/glob", "table9/mnist/vgg8b/glob"], 2, 1.0)
        rows = ["paper/mnist/vgg8b/glob", "paper/mnist/mlp/glob"]
        assert [(plan.row, plan.seed) for plan in found] == [(row, seed) for seed in (1, 2) for row in rows]
        assert first_of("table9/mnist/vgg8b/glob") == "paper/mnist/vgg8b/glob"

    @pytest.mark.parametrize("seeds", [0, -1, 101])
    def test_seeds_out_of_range_are_told(self, seeds: int) -> None:
        assert mistake([f"{MLP}/pred"], seeds, 1.0) == f"--seeds is {seeds}; give 1 to 100"

    @pytest.mark.parametrize("scale", [0.0, -0.1, 1.01, float("nan"), float("inf")])
    def test_a_share_out_of_range_is_told(self, scale: float) -> None:
        assert mistake([f"{MLP}/pred"], 1, scale) == f"--epoch-scale is {scale:g}; give a number above 0 and at most 1"

    @pytest.mark.parametrize(
        ("flags", "told"),
        [
            (("--width", "2"), f"{MLP}/pred: --width is 2, but mlp has no channels; use --hidden-units"),
            (("--no-such-flag",), f"{MLP}/pred: unrecognized arguments: --no-such-flag; see --help"),
            (("--epochs", "3"), "--epochs is not for this command, whose --epoch-scale decides it; drop it"),
            (
                ("--lr-milestones", "3"),
                "--lr-milestones is not for this command, whose --epoch-scale decides it; drop",
            ),
            (("--seed", "3"), "--seed is not for this command, whose --seeds decides it; drop it"),
            (("--loss", "sim"), "--loss is not for this command, whose --rows decides it; drop it"),
            (("--output", "x"), "--output is not for this command, which names the run folders itself"),
            (("--resume", "auto"), "--resume is not for this command, which names the run folders itself"),
        ],
    )
    def test_flags_that_do_not_fit_are_told(self, flags: tuple[str, ...], told: str) -> None:
        assert mistake([f"{MLP}/pred"], 1, 1.0, flags).startswith(told)

    def test_only_what_alters_the_method_departs_from_a_recipe(self) -> None:
        placed = a_plan(f"{MLP}/pred", 1, 1.0, "--threads", "2", "--data-dir", "/d", "--device", "cpu")
        assert placed.changes == {} and placed.folder == f"{MLP}/pred/epochs-200-seed-1"
        other = a_plan(f"{MLP}/pred", 2, 0.1, "--hidden-units", "64", "--wire", "bf16", "--precision", "bf16")
        assert other.changes == {"hidden_units": 64, "precision": "bf16", "wire": "bf16"}
        assert other.folder == f"{MLP}/pred/epochs-20-hidden-units-64-precision-bf16-wire-bf16-seed-2"
        assert (
            setting_of(other).departure == "shortened to 20 of 200 epochs, hidden units 64, precision bf16, wire bf16"
        )

    def test_changes_are_those_of_the_second(self) -> None:
        recipe = experiments()[f"{MLP}/pred"].config
        assert changes(recipe, replace(recipe, train=replace(recipe.train, beta=0.5))) == {"beta": 0.5}


class TestTime:
    def test_work_grows_with_epochs_and_with_what_a_loss_computes(self) -> None:
        glob, pred, predsim = (work(a_plan(f"{MLP}/{loss}")) for loss in ("glob", "pred", "predsim"))
        assert pred < glob < predsim
        assert work(a_plan(f"{MLP}/pred", 1, 0.5)) == pytest.approx(pred / 2)
        assert work(a_plan(f"{MLP}/pred", 1, 1.0, "--train-limit", "600")) == pytest.approx(pred / 100)

    def test_nothing_is_told_before_an_epoch_has_ended(self) -> None:
        assert Clock([1.0, 1.0]).left(0, None, 10, 0) is None

    def test_time_left_is_of_the_row_and_of_all(self) -> None:
        clock = Clock([10.0, 20.0, 30.0])
        assert clock.left(0, 2.0, 10, 4) == (12.0, 12.0 + 2.0 * 50)  # 20 seconds for 10, so two for each
        clock.finished(0, 20.0)
        assert clock.left(1, None, 10, 0) == (40.0, 40.0 + 60.0), "by those before it"
        assert clock.left(1, 2.0, 10, 9) == (2.0, 2.0 + 30.0 * 40 / 30)

    def test_durations(self) -> None:
        assert [duration(seconds) for seconds in (-1, 0.4, 61, 93_780)] == [
            "0:00:00",
            "0:00:00",
            "0:01:01",
            "26:03:00",
        ]

    def test_without_a_terminal_a_line_comes_now_and_then(self) -> None:
        console = Console(file=io.StringIO(), width=80)
        plan = a_plan()
        with Teller(3, 1, console) as teller:
            teller.under_way(plan, Progress(7, 1.0, 12.5), (193.0, 3600.0))
            teller.under_way(plan, Progress(8, 1.0, 12.5), (192.0, 3599.0))
            teller.ended(plan, a_run(error=8.6))
            teller.failed(plan, DataError("no\x1b[2J such"))
        assert isinstance(console.file, io.StringIO)
        assert console.file.getvalue().splitlines() == [
            "1 of 3 trainings are kept already",
            f"2/3 {MLP}/pred, seed 1: epoch 7 of 200, test error 12.50 %; left: 0:03:13 of the row, 1:00:00 of all",
            f"2/3 {MLP}/pred, seed 1: 8.60 % after 200 epochs",
            f"3/3 {MLP}/pred, seed 1: not run: no\\u001b[2J such",
        ]


class TestResults:
    def test_what_is_kept_is_read_again(self, tmp_path: Path) -> None:
        setting = Setting(20, 200, {"hidden_units": 64})
        path = add(tmp_path, f"{MLP}/pred", setting, a_run())
        assert read(tmp_path) == {f"{MLP}/pred": {setting.label: (setting, [a_run()])}}
        assert path.name == "paper-fashion_mnist-mlp-pred.json" and [path] == list(tmp_path.iterdir())

    def test_the_file_holds_the_promised_keys_and_figures(self, tmp_path: Path) -> None:
        setting = Setting(200, 200, {})
        add(tmp_path, f"{MLP}/pred", setting, a_run(1, 9.0))
        report = json.loads(add(tmp_path, f"{MLP}/pred", setting, a_run(2, 10.0)).read_text())
        assert list(report)[:3] == ["schema", "name", "row"] and report["schema"] == 1
        assert {"command", "machine", "versions", "commit", "rows", "targets"} < set(report)
        assert report["rows"][0]["test_error_percent"] == {"median": 9.5, "minimum": 9.0, "maximum": 10.0, "n": 2}

    def test_a_seed_is_kept_once_and_settings_apart(self, tmp_path: Path) -> None:
        full, short = Setting(200, 200, {}), Setting(20, 200, {})
        for setting, run in ((full, a_run(2)), (short, a_run(1)), (full, a_run(1, 8.0)), (full, a_run(2, 7.0))):
            add(tmp_path, f"{MLP}/pred", setting, run)
        kept = read(tmp_path)[f"{MLP}/pred"]
        assert [(run.seed, run.test_error_percent) for run in kept[full.label][1]] == [(1, 8.0), (2, 7.0)]
        assert [run.seed for run in kept[short.label][1]] == [1]

    def test_a_curve_stands_on_a_line(self, tmp_path: Path) -> None:
        curve = [float(epoch) for epoch in range(400)]
        text = add(tmp_path, f"{MLP}/pred", Setting(400, 400, {}), a_run(train_curve=curve)).read_text()
        assert len(text.splitlines()) < 100 and json.loads(text)["rows"][0]["runs"][0]["train_curve"] == curve

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"row": "x", "rows": [{}]}', '{"row": "x", "rows": 3}'])
    def test_a_damaged_file_is_told(self, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(
            DataError, match=r"x\.json cannot be read as the results of a row \(.*\); mend or remove it"
        ):
            read(tmp_path)
        assert main(["--rows", MLP, "--results", str(tmp_path)]) == 2, "before any training"
        assert capsys.readouterr().err.startswith("error: ")

    def test_the_list_of_recipes_tells_the_nearest_to_the_recipe(self, tmp_path: Path) -> None:
        row = "paper/fashion_mnist/vgg8b/glob"
        add(tmp_path, row, Setting(20, 200, {"width": 0.25}), a_run(1, 9.0))
        add(tmp_path, row, Setting(40, 200, {}), a_run(1, 8.0))
        told = list_recipes(read_measured(tmp_path)).splitlines()
        ours = "paper  4.53 %, ours 8.00 % (shortened to 40 of 200 epochs), 200 epochs"
        assert f"{row:<40} {ours}" in told
        assert f"{'table9/fashion_mnist/vgg8b/glob':<40} {ours}" in told, "the same training"
        add(tmp_path, row, Setting(200, 200, {}), a_run(1, 4.5))
        (tmp_path / "odd.json").write_text("{")
        assert read_measured(tmp_path) == {row: "4.50 %"}, "what is no result is left out"
        assert read_measured(tmp_path / "missing") == {}


class TestHarvest:
    """What a run folder tells, and how it is told where it does not."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        plan = a_plan()
        summary = dict.fromkeys(SUMMED, 1.0) | {"epochs": plan.epochs, "stage": [{"threads": 1, "device": "cpu"}]}
        (tmp_path / "summary.json").write_text(json.dumps(summary))
        record = {"train_error_percent": 3.0, "test_error_percent": None, "seconds": 1.0}
        (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        (tmp_path / "config.toml").write_text(to_toml(plan.config))
        return tmp_path

    def test_a_training_that_has_ended_is_told(self, folder: Path) -> None:
        run = harvest(a_plan(), folder, "command", ORIGIN)
        assert run is not None and (run.test_error_percent, run.device, run.commit) == (1.0, "cpu", "abc")
        (folder / "summary.json").unlink()
        assert harvest(a_plan(), folder, "command", ORIGIN) is None

    @pytest.mark.parametrize("missing", [*SUMMED, "epochs", "stage"])
    def test_a_summary_that_lacks_something_is_damaged(self, missing: str, folder: Path) -> None:
        summary = json.loads((folder / "summary.json").read_text())
        del summary[missing]
        (folder / "summary.json").write_text(json.dumps(summary))
        with pytest.raises(TrainingFailed, match=re.escape(f"{folder} is damaged ('{missing}'); remove it")):
            harvest(a_plan(), folder, "command", ORIGIN)

    @pytest.mark.parametrize("stage", [[], [{}], [3], None])
    def test_a_summary_with_odd_stages_is_damaged(self, stage: object, folder: Path) -> None:
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps(summary | {"stage": stage}))
        with pytest.raises(TrainingFailed, match="is damaged"):
            harvest(a_plan(), folder, "command", ORIGIN)

    @pytest.mark.parametrize("text", ["[]", "3", "{"])
    def test_a_summary_that_is_none_is_damaged(self, text: str, folder: Path) -> None:
        (folder / "summary.json").write_text(text)
        with pytest.raises(TrainingFailed, match="is damaged"):
            harvest(a_plan(), folder, "command", ORIGIN)

    @pytest.mark.parametrize("line", ['{"seconds": 1.0}', "3"])
    def test_metrics_that_lack_something_are_damaged_and_can_be_watched(self, line: str, folder: Path) -> None:
        (folder / "metrics.jsonl").write_text(line + "\n")
        assert _Seen(folder / "metrics.jsonl").progress() == Progress(0)
        with pytest.raises(TrainingFailed, match="is damaged"):
            harvest(a_plan(), folder, "command", ORIGIN)


def kept_of(table: str, errors: dict[str, float], setting: Setting = Setting(400, 400, {})) -> Any:  # noqa: B008
    return {f"{table}/{loss}": {setting.label: (setting, [a_run(1, error)])} for loss, error in errors.items()}


class TestPage:
    def test_losses_are_compared_pair_by_pair(self) -> None:
        kept = kept_of("table4/cifar10/mlp", {"glob": 34.0, "pred": 29.0, "predsim": 31.5})
        (found,) = comparisons("table4", kept)
        assert found.network == "cifar10/mlp" and found.departure == ""
        assert (found.agreeing, len(found.pairs), found.close) == (2, 3, []), "the paper has predsim < pred < glob"

    def test_errors_that_chance_may_have_made_are_not_compared(self) -> None:
        (found,) = comparisons("table4", kept_of("table4/cifar10/mlp", {"glob": 33.0, "pred": 32.0, "predsim": 20.0}))
        assert found.close == [("glob", "pred")] and found.agreeing == len(found.pairs) == 2

    def test_only_equal_settings_are_compared(self) -> None:
        full = kept_of("table4/cifar10/mlp", {"glob": 30.0})
        short = kept_of("table4/cifar10/mlp", {"pred": 30.0}, Setting(40, 400, {}))
        assert comparisons("table4", {**full, **short}) == []

    def test_every_row_is_there_run_or_not(self) -> None:
        text = page({})
        assert text.count("| not run |") == len(experiments())
        assert all(name in text for name in experiments())

    def test_paper_and_ours_stand_beside_each_other(self) -> None:
        setting = Setting(40, 400, {"width": 0.25})
        runs = [a_run(1, 9.0), a_run(2, 10.0, device="cuda:0", precision="bf16")]
        text = page({"table4/cifar10/vgg8b/glob": {setting.label: (setting, runs)}})
        line = "| 5.99 | 9.50 ± 0.71 | 2 | 40 of 400 | shortened, width 0.25 | 1 core of an A Chip; GPU 9, bf16 |"
        assert f"| table4/cifar10/vgg8b/glob {line}" in text

    def test_a_sentence_says_whether_the_papers_order_holds(self) -> None:
        right = page(kept_of("table4/cifar10/mlp", {"glob": 33.0, "predsim": 31.0}))
        assert (
            "The paper's order of the losses holds in our runs (cifar10/mlp: paper predsim 30.93 < glob 33.56, "
            in right
        )
        wrong = page(kept_of("table4/cifar10/mlp", {"glob": 30.0, "predsim": 34.0}, Setting(40, 400, {})))
        told = "holds in 0 of 1 pairs of losses in our runs (cifar10/mlp, shortened to 40 of 400 epochs: paper"
        assert told in wrong
        close = page(kept_of("table4/cifar10/mlp", {"glob": 30.0, "pred": 30.1, "predsim": 20.0}))
        assert "holds in our runs, 1 pair too close to tell (cifar10/mlp: paper" in close
        none = page(kept_of("table4/cifar10/mlp", {"glob": 30.0, "pred": 30.1}))
        assert "Our errors are too close to tell whether the paper's order of the losses holds (cifar10/mlp: p" in none
        own = page(kept_of("segments/cifar10/resnet18-0.25x", {"glob": 30.0, "predsim": 31.0}, Setting(10, 10, {})))
        assert "Ours, cifar10/resnet18-0.25x: glob 30.00 < predsim 31.00." in own

    def test_full_runs_tell_how_their_order_came_about(self) -> None:
        curves = {"glob": [*range(40, 0, -1)], "sim": [None, None, None, *range(57, 20, -1)]}
        setting = Setting(40, 40, {})
        kept = {
            f"table4/cifar10/mlp/{loss}": {
                setting.label: (setting, [a_run(1, 1.0, test_curve=curve), a_run(2, 1.0, test_curve=curve)])
            }
            for loss, curve in curves.items()
        }
        (course,) = courses("table4", kept)
        assert course.network == "cifar10/mlp" and course.errors == {
            4: {"glob": 37, "sim": 57},  # epoch 1 was not evaluated
            10: {"glob": 31, "sim": 51},
            20: {"glob": 21, "sim": 41},
            40: {"glob": 1, "sim": 21},
        }
        assert "On the way, cifar10/mlp, test error in percent:" in page(kept)
        assert "| 4 | 37.00 | 57.00 |" in page(kept)

    def test_a_course_takes_two_losses_in_full(self) -> None:
        short = Setting(40, 400, {})
        assert courses("table4", kept_of("table4/cifar10/mlp", {"glob": 30.0})) == []
        assert courses("table4", kept_of("table4/cifar10/mlp", {"glob": 30.0, "sim": 31.0}, short)) == []
        assert courses("table5", kept_of("table4/cifar10/mlp", {"glob": 30.0, "sim": 31.0})) == []
        assert courses("table4", kept_of("table4/cifar10/mlp", {"glob": 30.0, "sim": 31.0})) != []

    def test_local_losses_are_held_against_backprop_seed_by_seed(self) -> None:
        def kept(changes: dict[str, Any], errors: list[float], epochs: int = 10) -> dict[str, Any]:
            setting = Setting(epochs, 400, changes)
            return {setting.label: (setting, [a_run(seed, error) for seed, error in enumerate(errors, 1)])}

        heads = {"width": 0.25, "classifier": "copy"}
        local = {
            **kept({"width": 0.25}, [14.0, 16.0, 15.0]),
            **kept(heads, [12.0, 13.0, 99.0]),
            **kept({"width": 0.5}, [10.0, 10.0]),  # backprop is as wide
            **kept({"width": 0.25}, [10.0, 10.0], 20),  # or as long
            **kept({**heads, "dropout": 0.0}, [10.0, 10.0]),
            **kept({**heads, "beta": 0.5}, [10.0]),  # one seed tells no error of the difference
        }
        row = "table4/cifar10/vgg8b"
        found = {f"{row}/predsim": local, f"{row}/glob": kept({"width": 0.25}, [10.0, 12.0])}
        (one,) = all_behind("table4", found)
        assert (one.network, one.error, one.seeds) == ("cifar10/vgg8b", 11.0, 2)
        assert [(other.name, other.error, other.gap) for other in one.others] == [
            ("predsim", 15.0, Difference(4.0, 0.0)),
            ("predsim, classifier copy", pytest.approx(124 / 3), Difference(1.5, 0.5)),
        ]
        text = page(found)
        where = "cifar10/vgg8b, shortened to 10 of 400 epochs, width 0.25"
        assert f"Against backprop, {where}, 11.00 % over 2 seeds:" in text
        assert "| predsim, classifier copy | 41.33 | +1.50 ± 0.50 |" in text
        assert all_behind("table5", found) == []

    def test_the_figure_has_training_and_test_error_of_every_loss(self) -> None:
        assert figure("figure2", {}) is None
        kept = {first_of("figure2/cifar10/vgg11b/sim"): {"x": (Setting(2, 400, {}), [a_run()])}}
        drawn = figure("figure2", kept)
        assert drawn is not None and dict(drawn.panels) == {
            "training error (dropout on)\nshortened to 2 of 400 epochs": {"sim": [(1.0, 50.0), (2.0, 3.0)]},
            "test error\nshortened to 2 of 400 epochs": {"sim": [(2.0, 9.0)]},
        }

    def test_the_page_in_the_repository_is_what_is_kept(self, tmp_path: Path) -> None:
        results = ROOT / "benchmarks" / "results" / "paper"
        for path in results.glob("*.json"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
        assert render(tmp_path).read_text() == (results / "README.md").read_text()
        assert {p.name for p in tmp_path.glob("*.png")} <= {p.name for p in results.glob("*.png")}

    @pytest.mark.parametrize("place", ["", "none", "file"])
    def test_a_page_of_nothing_is_not_made(
        self, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").touch()
        folder = tmp_path / place
        assert main(["--render", "--results", str(folder)]) == 2
        told = f"error: --results {folder} holds no results; give a folder that trainings have been kept in\n"
        assert capsys.readouterr().err == told and [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_a_page_that_cannot_be_written_is_told(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        add(tmp_path, f"{MLP}/glob", Setting(20, 200, {}), a_run())
        (tmp_path / "README.md").mkdir()
        assert main(["--render", "--results", str(tmp_path)]) == 2
        told = f"error: --results {tmp_path} cannot be written (Is a directory); choose another folder\n"
        assert capsys.readouterr().err == told

    def test_mistakes_are_told_in_a_line(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        for arguments, told in (
            ([], "no rows are given; name some with --rows, such as table4/cifar10/mlp, or all with '*'"),
            (["--rows", "tables4"], "--rows 'tables4' names no experiment; near are "),
            (["--rows", MLP, "--seeds", "x"], "argument --seeds: invalid int value: 'x'; see python -m benchmarks"),
            (["--rows", MLP, "--processes", "0"], "--processes is 0; give 1 to 1024"),
            (["--rows", f"{MLP}/sim", "--processes", "9"], f"{MLP}/sim: 9 processes for a network of 4 blocks leave"),
            (
                ["--rows", MLP, "--runs", "/proc/no"],
                "--runs /proc/no cannot be written (No such file or directory); choo",
            ),
            (["--render", "--rows", MLP], "--render trains nothing; drop --rows and the flags after --"),
        ):
            assert main([*arguments, "--results", str(tmp_path)]) == 2
            lines = capsys.readouterr().err.splitlines()
            assert len(lines) == 1 and lines[0].startswith(f"error: {told}")


@pytest.mark.parametrize(("table", "wide"), [("table4/cifar10", 0.5), ("paper/fashion_mnist", 0.25)])
def test_similarity_wants_wide_layers_as_the_page_says(table: str, wide: float) -> None:
    kept = read(ROOT / "benchmarks" / "results" / "paper")

    def error(loss: str, width: float) -> float:
        """After one epoch."""
        settings = kept[f"{table}/vgg8b/{loss}"].values()
        (found,) = [runs for one, runs in settings if one.epochs == 1 and one.changes == {"width": width}]
        return found[0].test_error_percent

    assert error("predsim", 0.125) > error("pred", 0.125) + 1
    assert error("predsim", wide) < error("pred", wide)
