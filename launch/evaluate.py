"""Evaluate a finished run at all its exits: errors of the blocks' own classifiers, and what leaving early costs.

    python launch/evaluate.py RUN [flags]

Writes `exits.json` and `exits.png` into the run folder. Exit status: 0 done; 2 a mistake found before; 1 failed.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
import traceback
from collections.abc import Sequence

from pipeline.config.cli import Parser, reader
from pipeline.config.environment import environment
from pipeline.config.evaluation import THRESHOLDS, Evaluation
from pipeline.errors import ConfigError, DataError, PipelineError
from pipeline.runtime.ending import leave_now, open_standard_streams, tell

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Parse, call, tell of a failure in one line, and return the exit status."""
    try:
        with contextlib.suppress(SystemExit):  # of --help
            _act(_parse(arguments))
        return 0
    except PipelineError as error:
        tell(f"error: {error}")
        return 2 if isinstance(error, ConfigError | DataError) else 1
    except KeyboardInterrupt:
        tell("interrupted; the evaluation was ended")
        return 1
    except Exception:
        traceback.print_exc()
        return 1


def _parse(arguments: Sequence[str]) -> Evaluation:
    """What is asked for. Raises ConfigError for what cannot be evaluated."""
    whole = reader(int, "not a whole number")
    parser = Parser(prog="evaluate.py", description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="folder of a finished run on a named data set")
    parser.add_argument("--data-dir", metavar="DIR", help="root folder of the images (the run's)")
    parser.add_argument("--download", action="store_true", help="let torchvision fetch what is missing")
    parser.add_argument("--test-limit", type=whole, metavar="N", help="first N test samples only (the run's)")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu or cuda (auto)")
    parser.add_argument("--batch-size", type=whole, metavar="N", help="samples of a batch (the run's)")
    grid = " ".join(map(str, THRESHOLDS))
    told = f"probabilities from which samples leave early ({grid})"
    number = reader(float, "not a number")
    parser.add_argument("--thresholds", type=number, nargs="+", default=THRESHOLDS, metavar="F", help=told)
    parser.add_argument("--confusion", action="store_true", help="which classes are taken for which")
    parser.add_argument("--output", metavar="DIR", help="folder for exits.json and exits.png (RUN)")
    given = vars(parser.parse_args(arguments))
    where = environment()
    if where.world_size > 1:
        raise ConfigError(f"evaluate.py runs in one process, but there are {where.world_size}; start it by itself")
    return Evaluation(**given, command=shlex.join(["launch/evaluate.py", *arguments]))


def _act(asked: Evaluation) -> None:
    """Evaluate; torch is imported no earlier than here."""
    from pipeline.inference import load_model
    from pipeline.report.evaluation import evaluate

    evaluate(asked, lambda: load_model(asked.run, exits=True))


if __name__ == "__main__":
    open_standard_streams()
    leave_now(main(sys.argv[1:]))
