"""Runs one named experiment and writes what it found.

python -m benchmarks list
python -m benchmarks NAME [--quick] [--output DIR]
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.report import Result, publish

__all__ = ["EXPERIMENTS", "main"]

EXPERIMENTS = {
    "input": "augmented images a second on one core",
}
"""Name, which is that of the module in this package, and what it measures."""

_RESULTS = Path(__file__).resolve().parent / "results"  # kept in git
_QUICK = Path("runs") / "benchmarks"  # not kept: a quick run must not replace a real one


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 done, 2 no such experiment."""
    options = _parse(arguments)
    if options.name == "list":
        for name, description in EXPERIMENTS.items():
            print(f"{name:12} {description}")
        return 0
    if options.name not in EXPERIMENTS:
        known = ", ".join(EXPERIMENTS)
        print(f"error: there is no experiment {options.name!r}; choose list or one of {known}", file=sys.stderr)
        return 2
    run: Callable[[bool], Result] = importlib.import_module(f"benchmarks.{options.name}").run
    command = f"python -m benchmarks {options.name}" + (" --quick" if options.quick else "")
    folder = options.output or (_QUICK if options.quick else _RESULTS)
    print(publish(options.name, command, run(options.quick), folder))
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Named experiments.")
    parser.add_argument("name", metavar="NAME", help=f"list, or one of {', '.join(EXPERIMENTS)}")
    parser.add_argument("--quick", action="store_true", help="a rough figure within seconds")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for NAME.json and NAME.png")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
