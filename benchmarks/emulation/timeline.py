"""A picture of four stages at work, for machines with fewer cores than stages: the stages sleep, all else is real.

python -m benchmarks.emulation.timeline docs/timeline.png
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.emulation.load import Load, Window
from benchmarks.emulation.ours import run_ours
from benchmarks.harness.crew import Crew, CrewError, Member
from benchmarks.harness.folders import check_folder
from pipeline.errors import ConfigError, PipelineError
from pipeline.report.plots import save_timeline
from pipeline.report.trace import join
from pipeline.spans import Recorder

__all__ = ["draw_timeline", "main"]

_LOAD = Load(4, 0.3)
_WINDOW = Window(1, 13)
_QUEUE_DEPTH = 4
_SUCH_AS = "python -m benchmarks.emulation.timeline docs/timeline.png"


def draw_timeline(path: Path, load: Load = _LOAD, window: Window = _WINDOW) -> None:
    """Run the stages of `load`, one a process, and draw what each did while seven batches passed."""
    with Crew(load.stages) as crew:
        save_timeline(join(crew.call(_traced, load, window)), path)


def _traced(member: Member, load: Load, window: Window) -> dict[str, Any]:
    """The spans of one stage."""
    recorder = Recorder()
    run_ours(member, load, _QUEUE_DEPTH, 0, window, recorder)
    return recorder.export()


def main(arguments: Sequence[str]) -> int:
    """Draw into the file that is named; 0 done, 1 it could not be drawn, 2 a mistake found before."""
    try:
        path = _checked(arguments)
    except ConfigError as error:
        return _failed(error, 2)
    try:
        draw_timeline(path)
    except (CrewError, PipelineError, OSError) as error:
        return _failed(error, 1)
    return 0


def _checked(arguments: Sequence[str]) -> Path:
    if len(arguments) != 1:
        raise ConfigError(f"{len(arguments)} files are named; give one, such as: {_SUCH_AS}")
    path = Path(arguments[0])
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give a file in it")
    check_folder("the folder", path.parent)
    return path


def _failed(error: Exception, status: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
