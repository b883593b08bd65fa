"""What is raced over: a network on a data set, with everything that the entrants have in common."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config.schema import DataConfig, ModelConfig, RunConfig, TrainConfig, override

__all__ = ["HEADS", "Task", "tasks"]

HEADS = ("linear", "mlp-sr", "copy", "predsim")
"""What judges a segment: a classifier alone, or the linear one beside the similarity loss."""

_HELD_OUT = 0.1


@dataclass(frozen=True, kw_only=True)
class Task:
    """A race.

    Attributes:
        name: also of the folder that its curves are kept in.
        config: of global backprop; the entrants change what makes them what they are.
        rates: learning rates that every entrant is tried with.
        head_rates: factors of the best one for local heads, of which the first is tried with all rates.
        fine_rates: factors of the best one that those without local heads are tried with, so often as others' heads.
        tuning_epochs: of these tries, which learn from nine tenths of the training samples and are judged by the rest.
        seeds: of every curve.
        looks: evaluations in an epoch.
        heads: what judges a segment, with two segments and for every block.
        segments: further numbers of segments, tried with the head that is best for two.
        cuts: others that are tried with it: `late`, or `early`, where two processes are equally busy; numbers of
            segments, and the blocks that the first of them has at least, or the blocks of each. All else is balanced
            by its arithmetic.
        emulated: numbers of emulated devices.
        timed_steps: of a batch, timed at a stretch.
    """

    name: str
    config: RunConfig
    rates: tuple[float, ...]
    head_rates: tuple[float, ...]
    fine_rates: tuple[float, ...]
    tuning_epochs: int
    seeds: int
    looks: int
    segments: tuple[int, ...]
    heads: tuple[str, ...] = HEADS
    cuts: tuple[tuple[str, int | tuple[int, ...], int | None], ...] = ()
    emulated: tuple[int, ...]
    timed_steps: int

    @property
    def similarity_head(self) -> str:
        """The cheap one, where maps have space to save on."""
        return "conv" if self.config.model.model == "mlp" else "pool-4x4"

    @property
    def beta(self) -> float | None:
        """Of predsim; None is the paper's 0.99, which leaves a hundredth of the gradient to the classifiers and the
        output layer. Adam makes up for that and SGD does not."""
        return None if self.config.train.optimizer == "adam" else 0.5

    @property
    def tuning(self) -> RunConfig:
        """The shorter training that settings are chosen by."""
        values = {"epochs": self.tuning_epochs, "held_out": _HELD_OUT, "test_limit": None}
        return override(self.config, values)


def tasks(quick: bool, data_dir: str) -> tuple[Task, ...]:
    """All races, or those of minutes on data that need no files."""
    if quick:
        return _quick()
    return _fashion(data_dir), _cifar(data_dir)  # the shorter one first


def _cifar(data_dir: str) -> Task:
    """The settings of the public speed records, but for the rate and the number of epochs."""
    return Task(
        name="cifar10-fastnet",
        config=RunConfig(
            data=DataConfig(dataset="cifar10", data_dir=data_dir),
            model=ModelConfig(model="fastnet", width=0.375),
            train=TrainConfig(
                loss="glob",
                batch_size=500,
                epochs=9,
                optimizer="sgd",
                momentum=0.85,
                nesterov=True,
                weight_decay=5e-4,
                label_smoothing=0.2,
                lr_schedule="triangle",
                lr_peak=0.25,
                norm_bias_lr=64.0,
                norm_momentum=0.4,
            ),
        ),
        rates=(0.2, 0.4, 0.8),
        head_rates=(0.3, 1.0, 0.1),  # heads whose scores are not scaled down stand no rates that the rest wants
        fine_rates=(0.7, 1.4),
        tuning_epochs=3,
        seeds=3,
        looks=4,
        segments=(3, 4),
        heads=(*HEADS, "fast-copy"),
        cuts=(("late", 2, 4), ("late", 4, 3), ("early", (2, 5), None)),
        emulated=(2, 4, 7),
        timed_steps=8,
    )


def _fashion(data_dir: str) -> Task:
    """The paper's network of linear blocks, its optimizer, and a rate that falls to nothing."""
    return Task(
        name="fashion_mnist-mlp",
        config=RunConfig(
            data=DataConfig(dataset="fashion_mnist", data_dir=data_dir),
            model=ModelConfig(model="mlp", hidden_layers=3),
            train=TrainConfig(
                loss="glob", batch_size=128, epochs=8, label_smoothing=0.1, lr_schedule="triangle", lr_peak=0.2
            ),
        ),
        rates=(3e-4, 1e-3, 3e-3),
        head_rates=(1.0, 0.3, 0.1),
        fine_rates=(0.7, 1.4),
        tuning_epochs=3,
        seeds=3,
        looks=4,
        segments=(3,),  # four are all blocks
        emulated=(2, 4),
        timed_steps=30,
    )


def _quick() -> tuple[Task, ...]:
    train = TrainConfig(loss="glob", batch_size=32, epochs=2, lr_schedule="triangle", label_smoothing=0.1)
    data = DataConfig(dataset="digits", train_limit=320, test_limit=100)  # whole batches, held out or not
    flat = Task(
        name="digits-mlp",
        config=RunConfig(data=data, model=ModelConfig(model="mlp", hidden_units=32), train=train),
        rates=(3e-3, 1e-2),
        head_rates=(1.0, 0.3),
        fine_rates=(0.7,),
        tuning_epochs=1,
        seeds=2,
        looks=2,
        segments=(3,),
        emulated=(2,),
        timed_steps=2,
    )
    return (flat,)
