"""Train in several processes, fail, catch it, count what is left, train again.

python aborted_run.py HOW        under torchrun's variables, once a process

HOW is what happens in stage 1 under way: `raises`, `dies`, `hangs`; with `group` before it, as in `group-raises`, the
caller has a process group of its own. A line of JSON says what this process saw.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import pipeline
from tests.support.leftovers import Leftovers

RANK, HOW = int(os.environ["RANK"]), sys.argv[1]
PID = Path(sys.argv[2])


class Fuse(nn.Module):
    """Blows at its third batch of the run, if it is armed; smaller ones are tried before."""

    def __init__(self, how: str | None) -> None:
        super().__init__()
        self.layer, self.how, self.calls = nn.Linear(512, 512), how, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training and len(x) > 8
        if self.calls == 3:
            self.blow()
        return self.layer(x)  # type: ignore[no-any-return]

    def blow(self) -> None:
        if self.how == "raises":
            raise RuntimeError("the fuse has blown")
        if self.how == "dies":
            os._exit(0)
        if self.how == "hangs":
            os.kill(os.getpid(), signal.SIGSTOP)


def train(how: str | None) -> str:
    """Packets of 16 MiB: a failure finds some of them half sent."""
    torch.manual_seed(1)
    data = TensorDataset(torch.randn(2**15, 512), torch.randint(2, (2**15,)))
    test = TensorDataset(torch.randn(64, 512), torch.randint(2, (64,)))
    blocks = pipeline.blocks_from(
        nn.Sequential(nn.Linear(512, 512), nn.ReLU(), Fuse(how), nn.ReLU(), nn.Linear(512, 2))
    )
    config = pipeline.TrainConfig(
        loss="pred", epochs=1, batch_size=2**11 if how is None else 2**13, split=(1, 2), timeout=4, threads=1
    )
    if os.environ["WORLD_SIZE"] == "1":
        config = pipeline.TrainConfig(loss="pred", epochs=1, batch_size=2**11, threads=1)
    return pipeline.train(blocks, data, test, config).summary.state_sha256


def main() -> None:
    how = HOW.rpartition("-")[2]
    if HOW.startswith("group"):
        dist.init_process_group("gloo", timeout=timedelta(seconds=60))
        dist.all_reduce(torch.ones(1))
    first = train(None)
    if RANK == 1:
        PID.write_text(str(os.getpid()))
    before, start = Leftovers.now(), time.monotonic()
    try:
        train(how)
        error = ""
    except (pipeline.StageFailure, RuntimeError) as caught:
        error = f"{type(caught).__name__}: {caught}"
    seconds, nothing_left = time.monotonic() - start, before.are_all()
    alone = how != "raises"
    if alone:
        os.environ["WORLD_SIZE"] = "1"
    again = train(None)
    group = bool(alone or not HOW.startswith("group"))
    if not group:
        dist.all_reduce(total := torch.ones(1))
        group = total.item() == 2
    print(
        json.dumps([error, seconds, nothing_left, str(Leftovers.now()), str(before), again == first, group]),
        flush=True,
    )
    if how == "hangs":
        os.kill(int(PID.read_text()), signal.SIGKILL)


if __name__ == "__main__":
    main()
