"""A training step of global backprop as one CUDA graph: captured after some plain ones, then repeated."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from pipeline.config.schema import TrainConfig
from pipeline.errors import first_line
from pipeline.learning.graphs import CudaGraphs, Graphs, Replay

__all__ = ["CapturedStep", "Step", "captured", "warming_steps"]

Step = Callable[[Tensor, Tensor], None]
"""Learn from images [B, C, H, W] and labels [B], both on the device."""

_WARM_UP = 11  # plain steps before: as many as DistributedDataParallel asks for

_log = logging.getLogger(__name__)


def captured(step: Step, config: TrainConfig, device: torch.device) -> Step:
    """`step`, captured where `config` says so and the device can."""
    if config.capture == "off" or device.type != "cuda":
        return step
    return CapturedStep(step, config.batch_size, partial(CudaGraphs, device))


def warming_steps(wanted: int, device: str) -> int:
    """Steps of an epoch after which everybody's are captured, on a GPU: ours are sooner than those of backprop.

    Args:
        wanted: without any capture, and at least.
        device: that `--device` asks for.
    """
    captures = device != "cpu" and torch.cuda.is_available()
    return max(wanted, _WARM_UP + 1) if captures else wanted


class CapturedStep:
    """Repeats a step that learns from batches of one size; others are learned from plainly.

    Args:
        step: all it changes lies where it lay before; its gradients are None after it.
        batch: the size.
        graphs: makes the recorder.
    """

    def __init__(self, step: Step, batch: int, graphs: Callable[[], Graphs]) -> None:
        self._step, self._batch, self._graphs = step, batch, graphs
        self._seen = 0
        self._replay: Replay | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        if len(images) == self._batch:
            self._seen += 1
            if self._seen == _WARM_UP + 1:
                self._record(images, labels)
            if self._replay is not None:
                self._images.copy_(images)
                self._labels.copy_(labels)
                self._replay()
                return
        self._step(images, labels)

    def _record(self, images: Tensor, labels: Tensor) -> None:
        self._images, self._labels = torch.zeros_like(images), torch.zeros_like(labels)
        try:
            self._replay = self._graphs().record(lambda: self._step(self._images, self._labels))
        except RuntimeError as error:
            _log.warning("global backprop runs plainly, not captured: %s", first_line(error))
