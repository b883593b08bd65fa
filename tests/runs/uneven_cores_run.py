"""Train in processes that are told their host has six cores.

python -m tests.runs.uneven_cores_run FLAGS        under torchrun's variables, once a process
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

from pipeline.config.cli import parse
from pipeline.runtime.cores import Seat
from pipeline.training import Options, run


def six_cores(root: Path = Path("/")) -> Seat:
    return Seat("host", tuple(range(6)), 6)


if __name__ == "__main__":
    command = parse(sys.argv[1:])
    # There may be fewer: they cannot be kept to, but as many threads run.
    with patch("pipeline.runtime.world.seat", six_cores), patch("os.sched_setaffinity"):
        run(command.config, Options(command.output))
