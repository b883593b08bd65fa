"""The command line: flags to a configuration and back. Imports no torch, so that mistakes are answered at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from pipeline.config.catalog import DATASETS, LOSSES, MODELS
from pipeline.config.recipes import RECIPES, recipe
from pipeline.config.schema import (
    LOCALITIES,
    NONLINEARITIES,
    OPTIMIZERS,
    PRECISIONS,
    SIMILARITY_HEADS,
    WIRES,
    RunConfig,
    override,
)
from pipeline.config.toml import read_toml
from pipeline.errors import ConfigError

__all__ = ["Command", "parse"]


@dataclass(frozen=True)
class Command:
    """What the user asked for."""

    config: RunConfig
    output: str | None
    trace: str | None
    overwrite: bool
    quiet: bool
    dry_run: bool
    print_config: bool
    list_recipes: bool


class _Parser(argparse.ArgumentParser):
    """Reports a mistake as an exception instead of a usage text."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")


def parse(arguments: Sequence[str]) -> Command:
    """Read the flags over recipe, configuration file and defaults.

    Raises:
        ConfigError: an unknown flag, a value out of range, or a combination that cannot be trained.
    """
    given = vars(_parser().parse_args(arguments))
    files = {name: given.pop(name, None) for name in ("output", "trace")}
    switches = {
        name: bool(given.pop(name, False))
        for name in ("overwrite", "quiet", "dry_run", "print_config", "list_recipes")
    }
    config = override(_base(given), given)
    return Command(config, files["output"], files["trace"], **switches)


def _base(given: dict[str, Any]) -> RunConfig:
    """Where the flags start from; takes `recipe` and `config` out of `given`."""
    name, path = given.pop("recipe", None), given.pop("config", None)
    if name is not None and path is not None:
        raise ConfigError(f"--recipe {name} and --config {path} both set everything; drop one of them")
    if path is not None:
        return read_toml(path)
    if name is not None:
        return recipe(name)
    if "dataset" in given or "model" in given:
        return RunConfig()
    return recipe("digits")


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _split(text: str) -> tuple[int, ...] | None:
    if text == "auto":
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor block counts such as 3,2,2,1") from None


def _parser() -> argparse.ArgumentParser:
    """All flags; one that is not given leaves no trace, so that it overrides nothing."""
    parser = _Parser(
        prog="pipeline_train.py",
        description="Train a network with local error signals, one stage a process: no backward locking.",
        epilog="Without --dataset, --model, --recipe or --config the recipe `digits` is trained.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    _data_flags(parser.add_argument_group("data").add_argument)
    _model_flags(parser.add_argument_group("network").add_argument)
    _method_flags(parser.add_argument_group("method").add_argument)
    _schedule_flags(parser.add_argument_group("schedule").add_argument)
    _placement_flags(parser.add_argument_group("placement").add_argument)
    _run_flags(parser.add_argument_group("run").add_argument)
    return parser


_Add = Callable[..., argparse.Action]


def _data_flags(add: _Add) -> None:
    add("--dataset", metavar="NAME", help=f"one of {', '.join(DATASETS)}")
    add("--data-dir", metavar="DIR", help="root in torchvision's layout (./data)")
    add("--download", action="store_true", help="let torchvision fetch what is missing")
    add("--train-limit", type=_whole, metavar="N", help="first N samples only, at least 2 (all)")
    add("--test-limit", type=_whole, metavar="N", help="first N samples only, at least 1 (all)")
    add("--cutout", type=_whole, metavar="N", help="side of the hole in pixels, 0 is off (0)")


def _model_flags(add: _Add) -> None:
    add("--model", metavar="NAME", help=f"one of {', '.join(MODELS)}")
    add("--width", type=_number, metavar="F", help="multiplies the channels of a convolutional network (1)")
    add("--hidden-units", type=_whole, metavar="N", help="of each fully connected layer (1024)")
    add("--hidden-layers", type=_whole, metavar="N", help="fully connected layers (3 for mlp, 1 for vgg)")
    add("--nonlinearity", metavar="NAME", help=f"{', '.join(NONLINEARITIES)} (auto: leaky_relu where loss holds sim)")
    add("--dropout", type=_number, metavar="F", help="0 up to below 1 (0)")


def _method_flags(add: _Add) -> None:
    add("--loss", metavar="NAME", help=f"one of {', '.join(LOSSES)} (predsim)")
    add("--beta", type=_number, metavar="F", help="weight of sim in predsim, 0 to 1 (0.99; 0.01 for predsim-bio)")
    add("--decoder-dim", type=_whole, metavar="N", help="most inputs of a local classifier (4096)")
    add("--target-projection", type=_whole, metavar="N", help="length of the -bio target projection (128)")
    add(
        "--similarity-head", metavar="NAME", help=f"before the similarity matrix: {', '.join(SIMILARITY_HEADS)} (conv)"
    )
    add("--locality", metavar="KIND", help=f"{' or '.join(LOCALITIES)}: a local loss a block, or one a stage (block)")


def _schedule_flags(add: _Add) -> None:
    add("--epochs", type=_whole, metavar="N", help="at least 1 (recipe's; 10 without)")
    add("--batch-size", type=_whole, metavar="N", help="at least 2 (128)")
    add("--lr", type=_number, metavar="F", help="learning rate (5e-4)")
    add("--lr-milestones", type=_whole, nargs="+", metavar="E", help="epochs after which it is multiplied (none)")
    add("--lr-decay", type=_number, metavar="F", help="by this (0.25)")
    add("--optimizer", metavar="NAME", help=f"{', '.join(OPTIMIZERS)} (adam)")
    add("--momentum", type=_number, metavar="F", help="of sgd (0)")
    add("--weight-decay", type=_number, metavar="F", help="(0)")
    add("--seed", type=_whole, metavar="N", help="of all random numbers (1)")
    add("--eval-every", type=_whole, metavar="N", help="epochs between evaluations (1)")


def _placement_flags(add: _Add) -> None:
    add("--stages", type=_whole, metavar="K", help="stages in one process (1); under torchrun the world size")
    add("--split", type=_split, metavar="COUNTS", help="auto, or blocks of each stage such as 3,2,2,1 (auto)")
    add("--queue-depth", type=_whole, metavar="N", help="packets sent and not yet taken between two stages (4)")
    add("--device", metavar="NAME", help="auto, cpu, cuda, cuda:N (auto)")
    add("--precision", metavar="NAME", help=f"{', '.join(PRECISIONS)} (fp32)")
    add("--deterministic", action="store_true", help="the same bits on a GPU too")
    add("--threads", type=_whole, metavar="N", help="CPU threads of each process (cores / processes on this host)")
    add("--wire", metavar="NAME", help=f"{', '.join(WIRES)}: number format between stages (auto: lossless)")
    add("--timeout", type=_number, metavar="S", help="seconds of silence from a peer until the run fails (60)")


def _run_flags(add: _Add) -> None:
    add("--recipe", metavar="NAME", help=f"a named complete configuration: {', '.join(RECIPES)}")
    add("--list-recipes", action="store_true", help="name them and leave")
    add("--config", metavar="FILE", help="config.toml of an earlier run; other flags override it")
    add("--output", metavar="DIR", help="run folder (runs/<time>-<dataset>-<model>-<loss>)")
    add("--overwrite", action="store_true", help="replace a run that the folder holds")
    add("--trace", metavar="FILE", help="timeline of every stage in Chrome trace format")
    add("--dry-run", action="store_true", help="configuration, split, shapes and cost of each stage, no training")
    add("--print-config", action="store_true", help="effective configuration as TOML")
    add("--quiet", action="store_true", help="no live display")
