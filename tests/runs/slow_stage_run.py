"""Run the digits network in four processes with a trace; argument 2 is the stage that is slowed, or -1.

python -m tests.runs.slow_stage_run TRACE.json STAGE        under torchrun's variables, once a process
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.config.environment import environment
from pipeline.learning.local_block import LocalBlock
from pipeline.learning.packet import Packet
from pipeline.learning.stage import Stage
from pipeline.training import Options, run
from tests.runs.exactness_cases import BASE, vary

SPLIT = (1, 2, 2, 3)
DEPTH = 2
SLEEP_S = 0.15


def living() -> list[int]:
    """Indices of all blocks that this process holds, with parameters and optimizer."""
    return sorted(thing.index for thing in gc.get_objects() if type(thing) is LocalBlock)


def watch(slowed: int) -> list[list[int]]:
    """Slow one stage down; the list returned takes the blocks that live in the middle of training."""
    seen: list[list[int]] = []

    def watched(act: Callable[[Stage, Packet], Packet]) -> Callable[[Stage, Packet], Packet]:
        def wrapper(stage: Stage, packet: Packet) -> Packet:
            if packet.at.step == 5 and not seen:
                seen.append(living())
            if stage.index == slowed:
                time.sleep(SLEEP_S)
            return act(stage, packet)

        return wrapper

    for name in ("forward", "step"):
        setattr(Stage, name, watched(getattr(Stage, name)))
    return seen


if __name__ == "__main__":
    trace = sys.argv[1]
    seen = watch(int(sys.argv[2]))
    result = run(vary(BASE, split=SPLIT, queue_depth=DEPTH, batch_size=16, epochs=1), Options(trace=trace))
    rank = environment().rank
    stage = result.summary.stage[rank]
    Path(f"{trace}.{rank}").write_text(
        json.dumps({"blocks": seen[0], "waits": [stage.wait_input_s, stage.wait_output_s]})
    )
