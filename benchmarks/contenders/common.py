"""What all methods share: the record of a run, the whole network as one module, its test error, a barrier."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness.crew import Member
from pipeline.config.schema import RunConfig, TrainConfig
from pipeline.data.batches import Batches
from pipeline.learning.compiled import compiled
from pipeline.learning.norms import prepare_norms
from pipeline.learning.numerics import Numerics
from pipeline.learning.optimizer import set_learning_rate
from pipeline.network.blocks import Block
from pipeline.network.spec import Network, build_block
from pipeline.network.zoo import named_network
from pipeline.runtime.preparation import prepare

__all__ = [
    "CHEAP_HEAD",
    "Mixed",
    "Trained",
    "Use",
    "barrier",
    "build_blocks",
    "choose_device",
    "common_device",
    "cross_entropy",
    "describe",
    "error_percent",
    "open_batches",
    "opened",
    "processes",
    "timed_epochs",
    "told_by_first",
]


CHEAP_HEAD = "pool-4x4"
"""The similarity head that the experiment `heads` found the best one among those no more expensive than backprop."""


def processes() -> int:
    """How many processes a pipeline is measured with: one a GPU where there are several, else two."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return gpus if gpus > 1 else 2


@dataclass(frozen=True)
class Use:
    """How busy one stage was, and what it sent."""

    rank: int
    blocks: tuple[int, ...]
    busy_fraction: float
    bytes_sent: int


@dataclass(frozen=True)
class Trained:
    """What one process saw of a training run.

    Attributes:
        seconds: of training in each epoch, evaluation left out.
        errors: test error in percent after each epoch; None where it was not evaluated.
        stages: where the method has stages and measures them.
    """

    seconds: tuple[float, ...]
    errors: tuple[float | None, ...]
    stages: tuple[Use, ...] = ()


def choose_device(member: Member, config: RunConfig) -> torch.device:
    """The device of this process: a GPU of its own where there is one for each, unless the CPU is asked for."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() and config.train.device != "cpu" else 0
    return torch.device("cuda", member.rank) if gpus >= member.size else torch.device("cpu")


def common_device(most: int) -> str:
    """`--device` for methods that are compared, of which one has `most` processes: GPUs for all of them or for none.

    Else, on a single GPU, pipelines of ours would share it while others of as many processes compute on cores.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return "auto" if gpus >= most else "cpu"


def open_batches(config: RunConfig, device: torch.device) -> Batches:
    """The same batches that the pipeline's first stage sees; every process may open them."""
    return Batches.from_config(config.data, seed=config.train.seed, batch_size=config.train.batch_size, device=device)


def describe(config: RunConfig, batches: Batches) -> Network:
    """The network, not built."""
    return named_network(config.model, tuple(batches.shape), batches.classes, config.train.loss)


def build_blocks(network: Network, seed: int, device: torch.device, batches: Batches | None = None) -> list[Block]:
    """All blocks with the weights that the pipeline would start from on `batches`, in the layout convolutions like."""
    built = [build_block(spec, seed, index) for index, spec in enumerate(network)]
    if batches is not None:
        prepare(built[0], batches)
    return [block.to(device).to(memory_format=torch.channels_last) for block in built]


def opened(member: Member, config: RunConfig) -> tuple[torch.device, Batches, list[Block]]:
    """What every process begins with that trains the whole network: device, data, and blocks on it."""
    device = choose_device(member, config)
    batches = open_batches(config, device)
    return device, batches, build_blocks(describe(config, batches), config.train.seed, device, batches)


class Mixed(nn.Module):
    """Layers in turn, in the number format of `--precision`, compiled with `--compile`; what they give may be as
    narrow."""

    def __init__(self, layers: Iterable[nn.Module], config: TrainConfig, device: torch.device) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)
        prepare_norms(config, self.body)
        self._run = compiled(self.body.forward, "backprop") if config.compile else self.body.forward
        self._numerics = Numerics(device, config.precision)

    def forward(self, x: Tensor) -> Tensor:
        with self._numerics.autocast():
            out: Tensor = self._run(x)
        return out


def cross_entropy(config: TrainConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """Of class scores and labels, as our own losses compute it: half precisions go up to float32."""

    def compute(scores: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(scores.float(), labels, label_smoothing=config.label_smoothing)

    return compute


def barrier(member: Member, device: torch.device) -> None:
    """Wait until all processes and their devices are here."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if member.size > 1:
        dist.barrier()


@torch.no_grad()
def error_percent(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> float:
    """Test error of a whole network, in evaluation mode for as long as it takes."""
    training = model.training
    model.eval()
    wrong = samples = 0
    for images, labels in batches:
        wrong += int((model(images).argmax(1).cpu() != labels).sum())
        samples += len(labels)
    model.train(training)
    return 100.0 * wrong / samples


def told_by_first(member: Member, measure: Callable[[], float]) -> float:
    """What process 0 measures, told to all."""
    told = [measure() if member.rank == 0 else 0.0]
    if member.size > 1:
        dist.broadcast_object_list(told)
    return told[0]


def timed_epochs(
    member: Member,
    config: RunConfig,
    batches: Batches,
    device: torch.device,
    *,
    step: Callable[[Tensor, Tensor], None],
    optimizers: Sequence[torch.optim.Optimizer],
    error: Callable[[], float],
) -> Trained:
    """Train epoch by epoch; the clock runs from the first batch until all processes have made the last update."""
    seconds: list[float] = []
    errors: list[float | None] = []
    for epoch in range(1, config.train.epochs + 1):
        barrier(member, device)
        start = time.perf_counter()
        for done, images, labels in batches.train(epoch):
            set_learning_rate(config.train.rate(epoch, done, batches.steps_per_epoch), *optimizers)
            step(images, labels)
        barrier(member, device)
        seconds.append(time.perf_counter() - start)
        errors.append(error() if config.train.evaluates(epoch) else None)
    return Trained(tuple(seconds), tuple(errors))
