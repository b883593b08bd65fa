"""`python -m benchmarks paper`: trains rows of the paper's tables one by one, keeps and shows what they came to."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from benchmarks.harness.folders import check_folder
from benchmarks.harness.report import provenance
from benchmarks.paper.curves import draw_tables
from benchmarks.paper.page import page
from benchmarks.paper.results import Kept, add, read, setting_of
from benchmarks.paper.rows import Plan, plans, select
from benchmarks.paper.telling import Teller
from benchmarks.paper.training import Progress, Stopped, TrainingFailed, harvest, train
from benchmarks.paper.work import Clock, work
from pipeline.errors import ConfigError, DataError, PipelineError, first_line
from pipeline.text import one_line

__all__ = ["PAGE", "main", "render"]

_ROOT = Path(__file__).resolve().parents[1]
_RUNS = Path("runs") / "paper"
PAGE = "README.md"
_MOST_PROCESSES = 1024

_USAGE = """\
Trains rows of the paper's tables one after another, goes on where it was stopped, and writes what they came to beside
the paper's errors. Flags of launch/pipeline_train.py may follow after --, such as: -- --width 0.25 --device cuda"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see python -m benchmarks paper --help")


def main(arguments: Sequence[str]) -> int:
    """Run the command; 0 all is done, 1 a row failed or it was stopped, 2 a mistake found before any training."""
    arguments, flags = _cut(arguments)
    try:
        options = _parser().parse_args(arguments)
        if options.render:
            if options.rows or flags:
                raise ConfigError("--render trains nothing; drop --rows and the flags after --")
            if not read(options.results):
                raise ConfigError(
                    f"--results {options.results} holds no results; give a folder that trainings have been kept in"
                )
            check_folder("--results", options.results, render)
            print(options.results / PAGE)
            return 0
        flags_of_all = ["--data-dir", options.data_dir, *flags]
        todo = plans(select(_patterns(options.rows)), options.seeds, options.epoch_scale, flags_of_all)
        _check_processes(options.processes, todo)
        check_folder("--runs", options.runs)
        check_folder("--results", options.results, render)  # what it holds can be read, too
    except PipelineError as error:
        _tell(f"error: {error}")
        return 2
    try:
        failed = _run_all(todo, options, _command(options, flags))
    except Stopped as error:
        _tell(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        _tell("error: stopped between two trainings; the same command goes on from there")
        return 1
    print(options.results / PAGE)
    return 1 if failed else 0


def _tell(line: str) -> None:
    print(one_line(line, sys.stderr.encoding), file=sys.stderr)


def _command(options: argparse.Namespace, flags: Sequence[str]) -> str:
    """As it is kept: without folders of this machine."""
    given = ["--rows", *options.rows, "--seeds", str(options.seeds), "--epoch-scale", f"{options.epoch_scale:g}"]
    stages = ["--processes", str(options.processes)] if options.processes > 1 else []
    further = ["--", *flags] if flags else []
    return shlex.join(["python", "-m", "benchmarks", "paper", *given, *stages, *further])


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m benchmarks paper", description=_USAGE, allow_abbrev=False)
    parser.add_argument(
        "--rows", nargs="+", metavar="PATTERN", help="experiments, such as table4, 'table4/cifar10/mlp/*', '*/predsim'"
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="of each row: 1 to N (1)")
    parser.add_argument(
        "--epoch-scale", type=float, default=1.0, metavar="F", help="share of every schedule, marked as shortened (1)"
    )
    parser.add_argument("--processes", type=int, default=1, metavar="K", help="stages, each in its process (1)")
    parser.add_argument("--data-dir", default="./data", metavar="DIR", help="root in torchvision's layout (./data)")
    parser.add_argument("--runs", type=Path, default=_RUNS, metavar="DIR", help=f"where the run folders lie ({_RUNS})")
    parser.add_argument(
        "--results",
        type=Path,
        default=_ROOT / "results" / "paper",
        metavar="DIR",
        help="where JSON, page and pictures lie (benchmarks/results/paper)",
    )
    parser.add_argument("--render", action="store_true", help="write page and pictures anew from what is kept")
    return parser


def _cut(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is ours, and what follows `--`."""
    at = list(arguments).index("--") if "--" in arguments else len(arguments)
    return list(arguments[:at]), list(arguments[at + 1 :])


def _patterns(rows: Sequence[str] | None) -> Sequence[str]:
    if not rows:
        raise ConfigError("no rows are given; name some with --rows, such as table4/cifar10/mlp, or all with '*'")
    return rows


def _check_processes(count: int, todo: Sequence[Plan]) -> None:
    if not 1 <= count <= _MOST_PROCESSES:
        raise ConfigError(f"--processes is {count}; give 1 to {_MOST_PROCESSES}")
    for plan in todo:
        try:
            plan.config.check_world(count)
        except ConfigError as error:
            raise ConfigError(f"{plan.row}: {error}") from error


def _run_all(todo: Sequence[Plan], options: argparse.Namespace, command: str) -> int:
    """Train what is not kept yet. Returns how many have failed; raises Stopped."""
    kept = read(options.results)
    left = [plan for plan in todo if not _is_kept(plan, kept)]
    teller = Teller(len(todo), len(todo) - len(left), Console(stderr=True))
    clock = Clock([work(plan) for plan in left])
    failed = 0
    with teller:
        for index, plan in enumerate(left):
            try:
                _run(plan, index, clock, teller, options, command)
            except TrainingFailed as error:
                failed += 1
                teller.failed(plan, error)
    return failed


def _is_kept(plan: Plan, kept: Kept) -> bool:
    _, runs = kept.get(plan.row, {}).get(setting_of(plan).label, (None, []))
    return any(run.seed == plan.seed for run in runs)


def _run(plan: Plan, index: int, clock: Clock, teller: Teller, options: argparse.Namespace, command: str) -> None:
    """Train one plan to its end, keep what it came to, and show it."""
    folder, last = options.runs / plan.folder, Progress(0)

    def watch(progress: Progress) -> None:
        nonlocal last
        last = progress
        teller.under_way(plan, progress, clock.left(index, progress.epoch_seconds, plan.epochs, progress.epochs))

    began, origin = time.monotonic(), provenance()
    run = harvest(plan, folder, command, origin)  # of a training that had ended when it was stopped
    if run is None:
        train(plan, folder, options.processes, watch)
        run = harvest(plan, folder, command, origin)
        clock.finished(index, (last.epoch_seconds or (time.monotonic() - began) / plan.epochs) * plan.epochs)
    if run is None:
        raise TrainingFailed(f"{folder} holds no summary though its training has ended")
    try:
        add(options.results, plan.row, setting_of(plan), run)
        render(options.results)
    except (OSError, DataError) as error:
        raise TrainingFailed(
            f"{first_line(error)}; its run is kept in {folder}: start the command anew then"
        ) from error
    teller.ended(plan, run)


def render(results: Path) -> Path:
    """Write page and pictures from what is kept; the page's path."""
    kept = read(results)
    results.mkdir(parents=True, exist_ok=True)
    path = results / PAGE
    path.write_text(page(kept, draw_tables(kept, results)), encoding="utf-8")
    return path
