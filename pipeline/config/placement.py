"""Where blocks run: nothing here changes the weights, except a number format on the wire narrower than theirs."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config.fields import Bounds, are_counts, check_fields, joined, option, several
from pipeline.errors import ConfigError
from pipeline.text import brief, shown

__all__ = ["Placement"]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Stages, devices, threads, and what connects them. The default is one stage in one process."""

    stages: int | None = option(
        None,
        "stages in one process",
        Bounds(1, 1_000_000, why="each takes a block of the network"),
        shown="1; under torchrun the world size",
        metavar="K",
    )
    split: tuple[int, ...] | None = option(
        None,
        "blocks of each stage",
        shown="auto",
        metavar="COUNTS",
        given="auto, or counts such as 3,2,2,1",
        doc="blocks of each stage; `auto` balances them by measured cost; in one process it sets the number of stages",
    )
    queue_depth: int = option(
        4,
        "packets sent and not yet taken between two stages, both ends together",
        Bounds(1, 1024, why="every packet takes memory"),
    )
    device: str = option(
        "auto",
        "device of every process",
        given="auto, cpu, cuda, cuda:N",
        doc="device of every process: `cuda` gives each process of a host a GPU of its own, in order, and lets them "
        "share where there are fewer; `auto` does so where there are GPUs, and is `cpu` elsewhere; `cuda:N` is one "
        "for all processes of a host",
    )
    deterministic: bool = option(False, "the same bits on a GPU too")
    capture: str = option(
        "auto",
        "on a GPU, repeat captured steps",
        ("auto", "off"),
        doc="on a GPU a stage's training steps are captured as graphs and repeated, with the same bits (`auto`)",
    )
    threads: tuple[int, ...] | int | None = option(
        None,
        "CPU threads of each process",
        shown="auto: cores by cost",
        metavar="N",
        given="auto, a number of at most 1024, or one a process, such as 3,1",
        doc="CPU threads of each process, or one number a process; with `auto` the processes of a host share its "
        "cores in proportion to what their stages cost, and keep to them",
    )
    wire: str = option(
        "auto",
        "number format between stages",
        ("auto", "fp32", "bf16", "fp16"),
        shown="auto: lossless",
        doc="number format between stages; one that is narrower rounds at their boundaries, in one process too",
    )
    timeout: float = option(
        60.0,
        "seconds of silence from a peer (not of slowness) to failure",
        Bounds(0.0, 604800.0, open_low=True, why="a week"),
        metavar="S",
    )

    def __post_init__(self) -> None:
        check_fields(self, Placement)
        name, _, number = self.device.partition(":")
        numbered = name == "cuda" and number.isascii() and number.isdecimal() and len(number) < 10
        if self.device not in ("auto", "cpu", "cuda") and not numbered:
            raise ConfigError(f"--device is {shown(self.device)}; choose auto, cpu, cuda or cuda:N")
        self._check_threads()
        if self.split is None:
            return
        if not are_counts(self.split):
            raise ConfigError(
                f"--split is {brief(joined(self.split))!r}; give auto or block counts of at least 1, such as 3,2,2,1"
            )
        if self.stages is not None and self.stages != len(self.split):
            raise ConfigError(
                f"--split {joined(self.split)} makes {len(self.split)} stages, but --stages is {self.stages}; drop "
                "one of them"
            )

    def _check_threads(self) -> None:
        if self.threads is None:
            return
        counts = several(self.threads)
        if not are_counts(counts, 1024):
            text = brief(joined(counts)) or "()"
            raise ConfigError(
                f"--threads is {text}; give auto, a whole number at least 1 and at most 1024, or one a process, such "
                "as 3,1"
            )

    def threads_of(self, world_size: int) -> tuple[int, ...] | None:
        """Of every process, or None where they follow the cost. Raises ConfigError for another number of processes."""
        if self.threads is None or isinstance(self.threads, int):
            return None if self.threads is None else (self.threads,) * world_size
        if len(self.threads) != world_size:
            raise ConfigError(
                f"--threads {joined(self.threads)} is for {len(self.threads)} processes, but there are {world_size}; "
                "give one number for all of them"
            )
        return self.threads

    def stage_count(self, world_size: int) -> int:
        """Number of stages in a run of `world_size` processes. Raises ConfigError if the flags say otherwise."""
        if world_size == 1:
            return len(self.split) if self.split is not None else (self.stages or 1)
        if self.split is not None and len(self.split) != world_size:
            raise ConfigError(
                f"--split {joined(self.split)} makes {len(self.split)} stages, but there are {world_size} processes, "
                f"one stage each; give {world_size} counts or --split auto"
            )
        if self.stages is not None and self.stages != world_size:
            raise ConfigError(
                f"--stages is {self.stages}, but under torchrun stages are the {world_size} processes; drop --stages"
            )
        return world_size

    def check_blocks(self, blocks: int, world_size: int) -> None:
        """Raise ConfigError if a network of `blocks` blocks cannot be laid out over the stages."""
        stages = self.stage_count(world_size)
        if self.split is not None and sum(self.split) != blocks:
            raise ConfigError(
                f"--split {joined(self.split)} places {sum(self.split)} blocks, but the network has {blocks}; "
                f"make the counts add up to {blocks}"
            )
        if stages > blocks:
            what = f"{world_size} processes" if world_size > 1 else f"--stages {stages}"
            raise ConfigError(f"{what} for a network of {blocks} blocks leave stages empty; use at most {blocks}")
