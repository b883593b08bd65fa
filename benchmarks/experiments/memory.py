"""Memory of a training step against depth, width and batch: what autograd keeps, and what the process takes.

What autograd keeps is counted without data (see `saved.py`): exact, of any size, the same on every machine. What the
process takes is measured with data, in a fresh process for every figure.

A pipeline stage holds a whole batch in all its blocks. A stage of torch's schedules holds as many microbatches as are
under way: P - s in stage s of P under 1F1B, all under GPipe. They are derived from that number, by a step that holds
so many graphs at once: for the same batch cut into microbatches, and for microbatches as large as the batch, so that
one forward sees as many samples.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from benchmarks.contenders.common import CHEAP_HEAD, build_blocks
from benchmarks.contenders.heads import CANDIDATES, with_head
from benchmarks.harness.crew import Crew, Member
from benchmarks.harness.figures import Figure, ratio, summarize
from benchmarks.harness.pictures import Curves
from benchmarks.harness.progress import shown
from benchmarks.harness.report import Result, Row, Target, at_most
from benchmarks.harness.saved import WITHOUT_DATA, checkpointed_peak, keep_layout, modules_of, peaks
from pipeline.config.schema import ModelConfig, TrainConfig
from pipeline.learning.balance import balance, members
from pipeline.learning.numerics import Numerics
from pipeline.learning.optimizer import create_optimizer
from pipeline.learning.packet import Kind, Packet, Position
from pipeline.learning.profile import count_costs
from pipeline.learning.stage import build_stage
from pipeline.network.blocks import canonical
from pipeline.network.spec import BlockShape, Network, infer_shapes
from pipeline.network.zoo import named_network
from pipeline.transport.queues import slots

__all__ = ["Case", "Method", "count", "queue_bytes", "run"]

SHAPE, CLASSES = (3, 32, 32), 10
STAGES, MICROBATCHES = 4, 8
_COUNTS = {False: 5, True: 1}  # steps counted, by `quick`; they all give the same, or the spread would tell
_STEPS = 2  # before the memory of a process is read; the second meets the optimizer's state


@dataclass(frozen=True)
class Case:
    """A network and a batch."""

    model: str = "vgg11b"
    width: float = 1.0
    batch: int = 128


@dataclass(frozen=True)
class Method:
    """A way to train in one process, or what one process of several has of it.

    Attributes:
        kind: `backprop`, `checkpoint` or `local`; of one stage, `stage` (local), `1F1B` or `GPipe`.
        loss: of local learning, else `glob`.
        head: before its similarity matrix.
        stage: index of the stage.
        microbatches: that a schedule cuts the batch into.
    """

    kind: str
    loss: str = "glob"
    head: str = "conv"
    stage: int | None = None
    microbatches: int = 1

    @property
    def label(self) -> str:
        """For tables."""
        name = {"checkpoint": "backprop, checkpoints"}.get(self.kind, self.kind) if self.loss == "glob" else self.loss
        head = "" if self.head == "conv" else f", head {self.head}"
        return name + head + ("" if self.stage is None else f", stage {self.stage} of {STAGES}")

    def in_flight(self) -> int:
        """Microbatches of which a schedule's stage holds activations at the same time."""
        assert self.stage is not None
        return min(STAGES - self.stage, self.microbatches) if self.kind == "1F1B" else self.microbatches


BACKPROP, PRED, PREDSIM = Method("backprop"), Method("local", "pred"), Method("local", "predsim")
WHOLE = (
    BACKPROP,
    Method("checkpoint"),
    PRED,
    PREDSIM,
    Method("local", "predsim", CHEAP_HEAD),
    Method("local", "predsim", "stride-4"),
)
_LOCAL_STAGES = [Method("stage", loss, stage=stage) for loss in ("pred", "predsim") for stage in range(STAGES)]
_SCHEDULED = [
    Method(kind, stage=stage, microbatches=MICROBATCHES) for kind in ("1F1B", "GPipe") for stage in range(STAGES)
]
_AXES: Mapping[str, Sequence[Case]] = {
    "depth": [Case(model) for model in ("vgg8b", "vgg11b", "vgg13", "vgg16")],
    "width": [Case(width=width) for width in (0.25, 0.5, 1.0)],
    "batch": [Case(batch=batch) for batch in (32, 64, 128, 256)],
}
_TINY = Case(width=1 / 16, batch=2 * MICROBATCHES)
_MEASURED = {False: Case(width=0.5, batch=64), True: Case(width=0.25, batch=32)}
_PROCESSES = {False: 2, True: 1}  # fresh ones for every method, by `quick`
_IN_PROCESSES: Mapping[bool, Sequence[Method]] = {
    False: [*WHOLE, *_LOCAL_STAGES[STAGES:], *_SCHEDULED[:STAGES]],
    True: [*WHOLE[:4], _LOCAL_STAGES[STAGES], _SCHEDULED[0]],
}


def run(quick: bool) -> Result:
    """Count every method over depth, width and batch, and the stages of one network; measure some in processes."""
    cases = list(dict.fromkeys(case for axis in _AXES.values() for case in axis))
    counted = {case: _count_whole(case, _COUNTS[quick]) for case in cases}
    whole = {row.settings["method"]: row for row in counted[Case()]}
    backprop = count(BACKPROP, Case(), _COUNTS[quick])
    stages = [_local_stage(method, backprop) for method in _LOCAL_STAGES]
    rows = [row for found in counted.values() for row in found]
    rows += [*stages, *(_scheduled_stage(method, backprop) for method in _SCHEDULED), *_measure(quick)]
    return Result(rows, _targets(whole, stages), _picture(counted))


def _count_whole(case: Case, repetitions: int) -> list[Row]:
    found = {method: count(method, case, repetitions) for method in WHOLE}
    return [
        _row(case, method, saved_activation_mb=_megabytes(kept), of_backprop=ratio(kept, found[BACKPROP]))
        for method, kept in found.items()
    ]


def _local_stage(method: Method, backprop: Sequence[int]) -> Row:
    """What a pipeline stage keeps, against its blocks taken one by one, and what its queues hold besides."""
    case, (network, shapes, config) = Case(), _describe(method, Case())
    own = _own(method, case)
    alone = sum(_peaks(_local(config, network, shapes, [1] * len(network), i, WITHOUT_DATA), 1)[0] for i in own)
    kept = count(method, case, len(backprop))
    return _row(
        case,
        method,
        saved_activation_mb=_megabytes(kept),
        of_backprop=ratio(kept, backprop),
        of_own_blocks=summarize([found / alone for found in kept]),
        queue_mb=_megabytes([queue_bytes(shapes, own, case.batch, config.queue_depth)]),
    )


def _scheduled_stage(method: Method, backprop: Sequence[int]) -> Row:
    """What a stage of a schedule keeps: of one batch, and with every microbatch as large as the batch."""
    case = Case()
    kept = count(method, case, len(backprop))
    large = count(method, replace(case, batch=case.batch * method.microbatches), len(backprop))
    return _row(
        case,
        method,
        saved_activation_mb=_megabytes(kept),
        of_backprop=ratio(kept, backprop),
        at_equal_forward_batch_mb=_megabytes(large),
    )


def _row(case: Case, method: Method, **figures: Figure) -> Row:
    settings: dict[str, object] = {**asdict(case), "method": method.label}
    if method.microbatches > 1:
        settings |= {"microbatches": method.microbatches, "in_flight": method.in_flight(), "derived": True}
    return Row(f"{case.model}, width {case.width:g}, batch {case.batch}: {method.label}", settings, figures)


def _megabytes(found: Sequence[int]) -> Figure:
    return summarize([count / 1e6 for count in found])


def _targets(whole: Mapping[str, Row], stages: Sequence[Row]) -> list[Target]:
    name = "7. activations saved in one process, of backprop's, vgg11b, "
    worst = max((row.figures["of_own_blocks"] for row in stages), key=lambda figure: figure.median)
    return [
        at_most(name + "pred", 0.35, whole[PRED.label].figures["of_backprop"]),
        at_most(name + "predsim", 0.45, whole[PREDSIM.label].figures["of_backprop"]),
        at_most("7. activations saved by a pipeline stage, of its blocks' one by one", 1.0, worst),
    ]


def _picture(counted: Mapping[Case, Sequence[Row]]) -> Curves:
    titles = {"depth": "blocks: vgg8b, vgg11b, vgg13, vgg16", "width": "width, vgg11b", "batch": "batch, vgg11b"}
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {titles[axis]: {} for axis in _AXES}
    for axis, cases in _AXES.items():
        for case in cases:
            x = {"depth": ModelConfig(model=case.model).blocks, "width": case.width, "batch": case.batch}[axis]
            for row in counted[case]:
                megabytes = row.figures["saved_activation_mb"].median
                panels[titles[axis]].setdefault(row.settings["method"], []).append((x, megabytes))
    return Curves("as the title says", "saved activations, MB", panels)


def queue_bytes(shapes: Sequence[BlockShape], own: Sequence[int], batch: int, depth: int) -> int:
    """Bytes in a stage's queues: its receive buffers, and the activations that may wait in its send slots.

    One receive buffer more than slots holds the batch being worked on; it is also the saved input of the first block.
    The first stage receives nothing, the last sends nothing.

    Args:
        shapes: of all blocks.
        own: indices of the stage's blocks.
        batch: samples.
        depth: `--queue-depth`.
    """
    send, receive = slots(depth)
    first, last = shapes[own[0]], shapes[own[-1]]
    received = 0 if own[0] == 0 else (receive + 1) * torch.Size(first.inputs).numel()
    sent = 0 if own[-1] == len(shapes) - 1 else send * torch.Size(last.outputs).numel()
    return 4 * batch * (received + sent)


@dataclass(frozen=True)
class _Trial:
    """A method set up: one training step of it, and the modules whose weights are no activations."""

    step: Callable[[], object]
    modules: Sequence[nn.Module]


def count(method: Method, case: Case, repetitions: int, numerics: Numerics | None = None) -> list[int]:
    """The most bytes that autograd keeps in each of some training steps; without data, unless `numerics` says else."""
    numerics = numerics or WITHOUT_DATA
    if method.kind == "checkpoint":
        blocks = _build(_describe(method, case)[0], numerics)
        # The hooks of the checkpoints hide from ours what a block saves again.
        return [checkpointed_peak(blocks, *_batch(SHAPE, case.batch, numerics.device)) for _ in range(repetitions)]
    return _peaks(_prepare(method, case, numerics), repetitions)


def _peaks(trial: _Trial, repetitions: int) -> list[int]:
    return peaks(trial.step, trial.modules, repetitions)


def _describe(method: Method, case: Case) -> tuple[Network, list[BlockShape], TrainConfig]:
    network, shapes = _network(case.model, case.width, method.loss)
    config = TrainConfig(loss=method.loss, batch_size=case.batch)
    if method.head in CANDIDATES:
        return with_head(network, method.head), shapes, config
    return network, shapes, replace(config, similarity_head=method.head)


@functools.cache
def _network(model: str, width: float, loss: str) -> tuple[Network, list[BlockShape]]:
    network = named_network(ModelConfig(model=model, width=width), SHAPE, CLASSES, loss)
    return network, infer_shapes(network, SHAPE)


def _own(method: Method, case: Case) -> tuple[int, ...]:
    """Indices of the blocks that the method's process has."""
    blocks = len(_describe(method, case)[0])
    return (
        tuple(range(blocks)) if method.stage is None else members(_split(method.loss, method.head, case))[method.stage]
    )


@functools.cache
def _split(loss: str, head: str, case: Case) -> tuple[int, ...]:
    network, shapes, config = _describe(Method("local", loss, head), case)
    return balance(count_costs(config, network, shapes, CLASSES), STAGES)


def _prepare(method: Method, case: Case, numerics: Numerics) -> _Trial:
    network, shapes, config = _describe(method, case)
    if method.kind == "stage":
        assert method.stage is not None
        split = _split(method.loss, method.head, case)
        return _local(config, network, shapes, split, method.stage, numerics)
    if method.kind == "local":
        return _local(config, network, shapes, [len(network)], 0, numerics)
    own = _own(method, case)
    model = nn.Sequential(*_build(tuple(network[i] for i in own), numerics))
    optimizer = create_optimizer(config, list(model.parameters()), numerics.fused)

    def step() -> None:
        if method.stage is None:
            _backprop(method, model, case.batch, numerics.device)
        else:
            _microbatches(method, model, shapes[own[0]].inputs, case.batch, numerics.device)
        optimizer.step()
        optimizer.zero_grad()

    return _Trial(step, [model])


def _build(network: Network, numerics: Numerics) -> list[nn.Module]:
    with numerics.device:
        blocks = build_blocks(network, 1, numerics.device)
    keep_layout(blocks)
    return [*blocks]


def _batch(shape: Sequence[int], batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Synthetic samples and labels."""
    labels = torch.arange(batch, device=device) % CLASSES
    return canonical(torch.randn(batch, *shape, device=device)), labels


def _local(
    config: TrainConfig,
    network: Network,
    shapes: Sequence[BlockShape],
    split: Sequence[int],
    index: int,
    numerics: Numerics,
) -> _Trial:
    """Block by block where the stage is the whole network; else, as a worker does, forward first and then update."""
    with numerics.device:
        stage = build_stage(config, network, shapes, CLASSES, split, index, numerics)
    inputs, modules = shapes[stage.blocks[0].index].inputs, modules_of(stage.blocks)
    keep_layout(modules)

    def step() -> None:
        x, labels = _batch(inputs, config.batch_size, numerics.device)
        packet = Packet.of(Kind.TRAIN, Position(), x, labels)
        if len(split) == 1:
            stage.step(packet)
        else:
            stage.forward(packet)
            stage.update()

    return _Trial(step, modules)


def _backprop(method: Method, model: nn.Sequential, batch: int, device: torch.device) -> None:
    x, labels = _batch(SHAPE, batch, device)
    for block in model:
        x = checkpoint(block, x, use_reentrant=False) if method.kind == "checkpoint" else block(x)
    F.cross_entropy(x, labels).backward()


def _microbatches(
    method: Method, model: nn.Sequential, inputs: Sequence[int], batch: int, device: torch.device
) -> None:
    """As many microbatches as the stage has under way: all forward, then each one's backward."""
    first, last = method.stage == 0, method.stage == STAGES - 1
    roots = []
    for _ in range(method.in_flight()):
        x, labels = _batch(inputs, batch // method.microbatches, device)
        out = model(x if first else x.requires_grad_())
        roots.append(F.cross_entropy(out, labels) if last else out)
    del x, out
    while roots:
        root = roots.pop(0)
        root.backward(torch.ones_like(root))


def _measure(quick: bool) -> list[Row]:
    """Peak memory of processes, the methods interleaved."""
    case, methods = _MEASURED[quick], _IN_PROCESSES[quick]
    found: dict[Method, list[dict[str, int]]] = {method: [] for method in methods}
    for method in shown([*methods] * _PROCESSES[quick], "fresh processes"):
        found[method].append(_in_fresh_process(method, case))
    return [
        _row(case, method, **{name: _megabytes([one[name] for one in each]) for name in each[0]})
        for method, each in found.items()
    ]


def _in_fresh_process(method: Method, case: Case) -> dict[str, int]:
    with Crew(1) as crew:
        return crew.call(take_memory, method, case)[0]


def take_memory(member: Member, method: Method, case: Case) -> dict[str, int]:
    """Train some steps in this process; bytes that it took at the most, and how many more than before.

    Before is after a step of a tiny network, so that torch's kernels are loaded. Where there is a GPU, the most that
    tensors took on it too.
    """
    gpu = torch.cuda.is_available()
    numerics = Numerics(torch.device("cuda", 0) if gpu else torch.device("cpu"))
    _prepare(method, _TINY, numerics).step()
    with contextlib.suppress(OSError):  # else the peak so far counts, should it be higher
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _status_bytes("VmRSS")
    trial = _prepare(method, case, numerics)
    for _ in range(_STEPS):
        trial.step()
    peak = _status_bytes("VmHWM")
    found = {"peak_process_mb": peak, "added_process_mb": peak - before}
    return found | ({"peak_device_mb": torch.cuda.max_memory_allocated(0)} if gpu else {})


def _status_bytes(name: str) -> int:
    """A size from Linux's description of this process, such as `VmHWM:  1024 kB`."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])
