"""A picture of four stages at work, for machines with fewer cores than stages: the stages sleep, all else is real.

python -m benchmarks.emulation.timeline docs/timeline.png
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.emulation.load import Load, Window
from benchmarks.emulation.ours import run_ours
from benchmarks.harness.crew import Crew, Member
from pipeline.report.plots import save_timeline
from pipeline.report.trace import join
from pipeline.spans import Recorder

__all__ = ["draw_timeline"]

_LOAD = Load(4, 0.3)
_WINDOW = Window(1, 13)
_QUEUE_DEPTH = 4


def draw_timeline(path: Path, load: Load = _LOAD, window: Window = _WINDOW) -> None:
    """Run the stages of `load`, one a process, and draw what each did while seven batches passed."""
    with Crew(load.stages) as crew:
        save_timeline(join(crew.call(_traced, load, window)), path)


def _traced(member: Member, load: Load, window: Window) -> dict[str, Any]:
    """The spans of one stage."""
    recorder = Recorder()
    run_ours(member, load, _QUEUE_DEPTH, 0, window, recorder)
    return recorder.export()


if __name__ == "__main__":
    draw_timeline(Path(sys.argv[1]))
