"""A run whose first attempt dies while its data is read; torchrun's variables say which attempt this is.

python restarted_run.py FOLDER        once a process
"""

from __future__ import annotations

import os
import sys

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import pipeline


class Fragile(Dataset[tuple[Tensor, int]]):
    targets = [index % 3 for index in range(24)]  # noqa: RUF012

    def __init__(self, breaks: bool) -> None:
        self.breaks = breaks

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.breaks and index == 20:
            os._exit(1)
        return torch.full((6,), float(index % 3)), index % 3


def main(folder: str) -> None:
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    config = pipeline.TrainConfig(epochs=1, batch_size=8, threads=1, timeout=20, decoder_dim=8)
    for output, breaks in (("whole", False), ("broken", first)):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        data = Fragile(breaks)
        pipeline.train(pipeline.blocks_from(network), data, data, config, output=f"{folder}/{output}")


if __name__ == "__main__":
    main(sys.argv[1])
