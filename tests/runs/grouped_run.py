"""Train in a process group that the caller has made, without torchrun's variables.

python grouped_run.py FILE SIZE        once a process; a line of JSON says what this one saw

The processes take their ranks in the group as they come; FILE is where they meet.
"""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import FileStore
from torch.utils.data import TensorDataset

import pipeline


def train(processes: int) -> list[object]:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(32, 6), torch.arange(32) % 3)
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
    config = pipeline.TrainConfig(epochs=1, batch_size=8, threads=1, timeout=20, decoder_dim=8)
    summary = pipeline.train(pipeline.blocks_from(network), data, data, config).summary
    assert summary.processes == processes
    return [summary.state_sha256, summary.processes]


def main(meeting: str, size: int) -> None:
    alone = train(1)[0]
    store = FileStore(f"{meeting}.ranks", size)
    rank = store.add("ranks", 1) - 1
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    found = train(size)
    dist.all_reduce(total := torch.ones(1))
    dist.destroy_process_group()
    print(json.dumps([rank, alone == found[0], total.item()]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
