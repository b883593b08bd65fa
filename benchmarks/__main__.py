"""Runs one named experiment and writes what it found.

python -m benchmarks list
python -m benchmarks tables                 what README.md and benchmarks/README.md quote of the kept results
python -m benchmarks NAME [--quick] [--data-dir DIR] [--download] [--output DIR]
python -m benchmarks throughput --processes K
python -m benchmarks time-to-accuracy [--part PART]     hours; goes on where it was stopped
python -m benchmarks gpu [--part PART]      on a machine with a GPU
python -m benchmarks paper --rows PATTERN [--seeds N] [--epoch-scale F]     the paper's experiments; see its --help

Results go to benchmarks/results; without --output those of --quick, --processes and gpu --part go to runs/benchmarks.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.harness.crew import CrewError
from benchmarks.harness.data import look_for_images
from benchmarks.harness.folders import check_folder
from benchmarks.harness.report import Provenance, Result, provenance, publish, show
from benchmarks.harness.tables import tables
from pipeline.errors import ConfigError, PipelineError, first_line

__all__ = ["EXPERIMENTS", "main"]

EXPERIMENTS = {
    "throughput": "samples a second of local learning and of global backprop in all its forms, on the same cores",
    "schedule": "utilisation of 2 to 16 emulated stages, ours and torch's schedules, with jitter and imbalance",
    "time-to-accuracy": "test error against steps and seconds, everyone tuned alike, on CIFAR-10 and Fashion-MNIST",
    "memory": "activations held and process memory against depth, width and batch",
    "scaling": "cost against blocks, width, batch and stages",
    "queue": "latency and bandwidth of a queue, and what a hand-over costs its stage",
    "heads": "cheaper similarity heads: test error and time of a step against the paper's",
    "input": "augmented images a second on one core",
    "gpu": "on a GPU: same bits however it runs, cost of steps, plain and captured, and of hand-overs; pipelines",
}
"""Name, which is that of the module in this package with underscores, and what it measures."""

_PAPER = "paper"  # has flags, results and a page of its own

_WITH_DATA = ("time-to-accuracy", "heads")
"""Those that read real images; their quick form does without, and so do emulated devices."""

_GROWING = {"time-to-accuracy"}
"""Those that keep what they have done so far beside their results."""

_IN_PARTS = ("time-to-accuracy", "gpu")

_RESULTS = Path(__file__).resolve().parent / "results"  # kept in git
_ASIDE = Path("runs") / "benchmarks"  # not kept: a quick run, or a part, must not replace a whole one


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 done, 1 an experiment ended early, 2 a mistake found before anything was measured."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == [_PAPER]:
        from benchmarks.paper.command import main as paper

        return paper(arguments[1:])
    options = _parse(arguments)
    if options.name == "list":
        for name, description in {**EXPERIMENTS, _PAPER: "rows of the paper's tables, beside its errors"}.items():
            print(f"{name:17} {description}")
        return 0
    if options.name == "tables":
        return _tables(options.output or _RESULTS)
    try:
        with _interruptible():
            return _experiment(options)
    except KeyboardInterrupt:
        kept = "; the same command goes on from what is kept" if options.name in _GROWING else ""
        return _failed(f"{options.name} was stopped{kept}", 1)


def _tables(folder: Path) -> int:
    try:
        found = tables(folder, tuple(EXPERIMENTS))
    except PipelineError as error:
        return _failed(str(error), 2)
    for name, table in found.items():
        print(f"<!-- {name} -->\n{table}\n<!-- end {name} -->\n")
    return 0


def _experiment(options: argparse.Namespace) -> int:
    """Run one experiment and publish what it found."""
    name: str = options.name
    folder: Path = options.output or (_ASIDE if options.quick or _is_partial(options) else _RESULTS)
    try:
        _check(options)
        check_folder("--output", folder)
        if options.download or _reads_images(options, folder):
            look_for_images(options.data_dir, download=bool(options.download))
    except PipelineError as error:
        return _failed(str(error), 2)
    run: Callable[..., Result] = importlib.import_module(_module(name)).run
    origin = provenance()
    try:
        result = run(options.quick, **_given(options, folder))
    except (CrewError, PipelineError, OSError) as error:  # the last where what grows cannot be kept
        return _failed(f"{name} ended early: {error}", 1)
    try:
        show(name, result)
    finally:  # neither a full disk nor a closed terminal takes the figures along
        status = _publish(options, result, folder, origin)
    return status


def _reads_images(options: argparse.Namespace, folder: Path) -> bool:
    if options.name not in _WITH_DATA or options.quick or options.part == "emulated":
        return False
    if options.part == "curves":  # all may be there, and only be told
        from benchmarks.experiments.time_to_accuracy import curves_missing

        return curves_missing(options.data_dir, folder)
    return True


def _is_partial(options: argparse.Namespace) -> bool:
    """Whether less than the whole is published; what grows is told in whole, whatever is done of it."""
    return options.processes is not None or (options.part is not None and options.name not in _GROWING)


def _publish(options: argparse.Namespace, result: Result, folder: Path, origin: Provenance) -> int:
    try:
        path = publish(options.name, _command(options), result, folder, origin)
    except OSError as error:
        reason = error.strerror or first_line(error)
        return _failed(f"{options.name} cannot be written to {folder} ({reason}); what it found stands above", 1)
    print(path)
    return 0


def _failed(message: str, status: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status


def _command(options: argparse.Namespace) -> str:
    """As it is kept: without folders of this machine."""
    words = ["python -m benchmarks", options.name, *(["--quick"] if options.quick else [])]
    for flag in ("part", "processes"):
        if getattr(options, flag) is not None:
            words += [f"--{flag}", str(getattr(options, flag))]
    return " ".join(words)


def _given(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """What the experiment is called with, beside `quick`."""
    given: dict[str, object] = {}
    if options.name in _WITH_DATA:
        given["data_dir"] = options.data_dir
    if options.name in _GROWING:
        given["folder"] = folder
    if options.part is not None:
        given["part"] = options.part
    if options.processes is not None:
        given["count"] = options.processes
    return given


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends an experiment as Ctrl-C does, with all the processes that it has started."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check(options: argparse.Namespace) -> None:
    """Raise ConfigError where the options do not go with an experiment, or there is no such experiment."""
    if options.name not in EXPERIMENTS:
        known = ", ".join(EXPERIMENTS)
        raise ConfigError(f"there is no experiment {options.name!r}; choose list, tables or one of {known}")
    for option, only in (("processes", ("throughput",)), ("part", _IN_PARTS), ("download", _WITH_DATA)):
        if getattr(options, option) is not None and options.name not in only:
            raise ConfigError(f"--{option} is for {' and '.join(only)}, not for {options.name}")
    if options.part is not None:
        parts: Sequence[str] = importlib.import_module(_module(options.name)).PARTS
        if options.part not in parts:
            raise ConfigError(f"--part is {options.part!r}; choose one of {', '.join(parts)}")
    if options.processes is not None:
        _check_processes(options.processes)


def _check_processes(count: int) -> None:
    from benchmarks.experiments.throughput import MOST_PROCESSES

    if not 2 <= count <= MOST_PROCESSES:
        raise ConfigError(f"--processes is {count}; give a whole number from 2 to {MOST_PROCESSES}")


def _module(name: str) -> str:
    return f"benchmarks.experiments.{name.replace('-', '_')}"


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Named experiments.")
    parser.add_argument("name", metavar="NAME", help=f"list, tables, or one of {', '.join([*EXPERIMENTS, _PAPER])}")
    parser.add_argument("--quick", action="store_true", help="a rough figure within minutes")
    parser.add_argument("--data-dir", default="./data", metavar="DIR", help="root in torchvision's layout (./data)")
    parser.add_argument("--download", action="store_true", default=None, help="fetch CIFAR-10 and Fashion-MNIST first")
    parser.add_argument("--processes", type=int, metavar="K", help="of throughput's pipelines (2; one a GPU)")
    parser.add_argument("--part", metavar="PART", help="one alone, of gpu (such as steps) or time-to-accuracy")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help=f"folder for NAME.json and NAME.png (benchmarks/results; {_ASIDE} for --quick or a part)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
