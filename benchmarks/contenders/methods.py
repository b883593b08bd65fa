"""One way to call every method that is compared: each trains the same network on the same batches, in a crew.

ours        blocks with local losses, or `glob` with stages that take turns: the product's own `run`
baselines   global backprop in one process, with DDP, and in torch's pipeline schedules
further     global backprop with activations computed again, and with replicas that are averaged now and then
reference   local losses in the style in which the method was published
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from benchmarks.contenders.averaging import train_averaged
from benchmarks.contenders.backprop import train_backprop, train_checkpointed, train_ddp
from benchmarks.contenders.common import Trained, Use, choose_device
from benchmarks.contenders.reference_style import train_reference_style
from benchmarks.contenders.schedules import SCHEDULES, train_scheduled
from benchmarks.harness.crew import Crew, Member
from pipeline.config.schema import RunConfig, override
from pipeline.runtime.world import reproducible
from pipeline.training import Options, run

__all__ = ["Method", "baselines", "split_of", "train", "train_ours"]


@dataclass(frozen=True)
class Method:
    """A named way to train.

    Attributes:
        label: for tables.
        kind: `ours`, `backprop`, `checkpointed`, `ddp`, `averaged`, `reference`, or a schedule of torch's by its name.
        processes: how many train together.
        overrides: fields of the configuration, as (name, value).
        microbatches: of a schedule.
        every: steps between averages of replicas.
        diloco: whether an outer optimizer follows these.
    """

    label: str
    kind: str
    processes: int
    overrides: tuple[tuple[str, object], ...] = ()
    microbatches: int = 1
    every: int = 1
    diloco: bool = False

    def train(self, crew: Crew, config: RunConfig) -> list[Trained]:
        """Train in all processes of a crew of the right size; what each of them saw."""
        assert crew.size == self.processes
        return crew.call(train, self, config)

    def configured(self, config: RunConfig, split: tuple[int, ...] | None = None) -> RunConfig:
        """The network as the method would train it (its nonlinearity follows the loss), the split as found."""
        config = override(config, {"loss": "glob"} if self.is_backprop else {})
        return config if split is None else override(config, {"split": split})

    @property
    def is_backprop(self) -> bool:
        """Whether it is one of the alternatives that local learning is held against."""
        return self.kind not in ("ours", "reference") or ("loss", "glob") in self.overrides


def baselines(processes: int, microbatches: int) -> list[Method]:
    """Global backprop in all its forms: one process, DDP, torch's schedules, and stages that take turns."""
    schedules = [Method(f"backprop, {name}", name, processes, (), microbatches) for name in SCHEDULES]
    return [
        Method("backprop, one process", "backprop", 1),
        Method("backprop, DDP", "ddp", processes),
        *schedules,
        Method("backprop, stages in turn", "ours", processes, (("loss", "glob"),)),
    ]


def split_of(trained: Sequence[Trained]) -> tuple[int, ...] | None:
    """The split that a first run measured, so that later ones need not measure again."""
    stages = trained[0].stages
    return tuple(len(stage.blocks) for stage in stages) if len(stages) > 1 else None


def train(member: Member, method: Method, config: RunConfig) -> Trained:
    """Run one method in this process of a crew."""
    config = override(config, dict(method.overrides))
    config = replace(config, train=replace(config.train, threads=member.threads))
    kinds: dict[str, Callable[[Member, RunConfig], Trained]] = {
        "ours": train_ours,
        "backprop": train_backprop,
        "checkpointed": train_checkpointed,
        "ddp": train_ddp,
        "averaged": partial(train_averaged, every=method.every, diloco=method.diloco),
        "reference": train_reference_style,
        **{name: partial(train_scheduled, name=name, microbatches=method.microbatches) for name in SCHEDULES},
    }
    with reproducible(config.train, member.threads, choose_device(member, config)):  # cuDNN as in runs of ours
        return kinds[method.kind](member, config)


def train_ours(member: Member, config: RunConfig) -> Trained:
    """What the command line does, without a run folder."""
    result = run(config, Options())
    stages = tuple(
        Use(stage.rank, stage.blocks, stage.busy_fraction, stage.bytes_sent) for stage in result.summary.stage
    )
    return Trained(
        tuple(epoch.seconds for epoch in result.epochs),
        tuple(epoch.test_error_percent for epoch in result.epochs),
        stages,
    )
