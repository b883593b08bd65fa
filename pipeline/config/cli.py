"""The command line: flags to a configuration and back. Imports no torch, so that mistakes are answered at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from pipeline.config.data import DataConfig
from pipeline.config.fields import Option, described, flag_name, option
from pipeline.config.method import Method
from pipeline.config.model import ModelConfig
from pipeline.config.paths import expanded
from pipeline.config.placement import Placement
from pipeline.config.recipes import recipe
from pipeline.config.resume import AUTO, placed_anew
from pipeline.config.schedule import Schedule
from pipeline.config.schema import RunConfig, override
from pipeline.config.toml import read_run, read_toml
from pipeline.errors import ConfigError

__all__ = ["EPILOG", "GROUPS", "Command", "Parser", "parse", "reader"]

EPILOG = "Without --dataset, --model, --recipe or --config the recipe `digits` is trained."


@dataclass(frozen=True, kw_only=True)
class _Start:
    recipe: str | None = option(
        None,
        "a named complete configuration",
        metavar="NAME",
        given="digits, or an experiment of the paper, such as table4/cifar10/vgg8b/predsim",
    )
    config: str | None = option(None, "config.toml of an earlier run; other flags override it", metavar="FILE")


@dataclass(frozen=True, kw_only=True)
class Command:
    """What the user asked for."""

    config: RunConfig
    list_recipes: bool = option(False, "name the recipes, with the errors that the paper publishes, and leave")
    output: str | None = option(None, "run folder", metavar="DIR", shown="runs/<time>-<dataset>-<model>-<loss>")
    overwrite: bool = option(False, "replace a run that the folder holds")
    resume: str | None = option(
        None,
        "go on from the newest checkpoint of a run",
        metavar="DIR",
        given="its folder, or auto: that of --output, if it holds one",
        doc="go on from the newest complete checkpoint of the run in DIR, with its configuration; with `auto` of the "
        "run in `--output`, where none is a fresh start",
    )
    init_from: str | None = option(None, "begin with the weights of a model.safetensors", metavar="FILE")
    trace: str | None = option(None, "timeline of every stage in Chrome trace format", metavar="FILE")
    dry_run: bool = option(False, "configuration, split, shapes and cost of each stage, no training")
    print_config: bool = option(False, "effective configuration as TOML")
    quiet: bool = option(False, "no live display")

    def __post_init__(self) -> None:
        if self.resume is not None and self.init_from is not None:
            raise ConfigError(
                "--resume goes on with all of a run, --init-from with its weights alone; drop one of them"
            )
        if self.resume is not None and self.overwrite:
            raise ConfigError("--overwrite removes what --resume goes on from; drop one of them")
        for name in ("output", "trace", "resume", "init_from"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, expanded(f"--{name}", getattr(self, name)))


GROUPS: Mapping[str, tuple[type, ...]] = {  # the headings of `--help`, and the classes whose fields are the flags
    "data": (DataConfig,),
    "network": (ModelConfig,),
    "method": (Method,),
    "schedule": (Schedule,),
    "placement": (Placement,),
    "run": (_Start, Command),
}


def parse(arguments: Sequence[str], world_size: int = 1) -> Command:
    """Read the flags over recipe, configuration file and defaults, for a run of `world_size` processes.

    Raises ConfigError for what cannot be trained.
    """
    given = vars(_parser().parse_args(arguments))
    start, call = _Start(**_take(given, _Start)), _take(given, Command)
    resume = call.get("resume")
    if resume is None or resume == AUTO:
        return Command(config=override(_base(start, given), given), **call)
    if start.recipe is not None or start.config is not None:
        raise ConfigError(f"--resume {resume} brings its own configuration; drop --recipe and --config")
    folder = expanded("--resume", resume)
    base = placed_anew(read_run(folder), world_size)
    return Command(config=override(base, given), **{"output": folder, **call})


def _take(given: dict[str, Any], part: type) -> dict[str, Any]:
    """What was given of the fields of `part`, taken out of `given`."""
    return {f.name: given.pop(f.name) for f, _ in described(part) if f.name in given}


def _base(start: _Start, given: Mapping[str, Any]) -> RunConfig:
    if start.recipe is not None and start.config is not None:
        raise ConfigError(f"--recipe {start.recipe} and --config {start.config} both set everything; drop one of them")
    if start.config is not None:
        return read_toml(start.config)
    if start.recipe is not None:
        return recipe(start.recipe)
    return RunConfig() if "dataset" in given or "model" in given else recipe("digits")


class Parser(argparse.ArgumentParser):
    """Reports a mistake as an exception instead of a usage text."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")


def _parser() -> argparse.ArgumentParser:
    """All flags; one that is not given leaves no trace, so that it overrides nothing."""
    parser = Parser(
        prog="pipeline_train.py",
        description="Train a network with local error signals, one stage a process: no backward locking.",
        epilog=EPILOG,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for title, parts in GROUPS.items():
        group = parser.add_argument_group(title)
        for f, told in described(*parts):
            value = {"metavar": told.metavar} if told.metavar else {}
            group.add_argument(flag_name(f.name), **{"help": told.help, **value, **_reading(str(f.type), told)})
    return parser


def _reading(kind: str, told: Option) -> Mapping[str, Any]:
    """How a flag is read, by the annotation of its field; where a word stands for None, it is given first."""
    if kind == "tuple[int, ...] | int | None":
        nothing = told.given.partition(",")[0]
        return {"type": reader(lambda text: _counts(text, nothing), f"not {told.given}")}
    return _KINDS.get(kind) or _KINDS[kind.removesuffix(" | None")]


def reader(read: Callable[[str], Any], wrong: str) -> Callable[[str], Any]:
    """`read` as argparse wants it: what cannot be read is told in words, which argparse's own are not."""

    def told(text: str) -> Any:
        try:
            return read(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is {wrong}") from None

    return told


def _split(text: str) -> tuple[int, ...] | None:
    return None if text == "auto" else tuple(int(part) for part in text.split(","))


def _counts(text: str, nothing: str) -> tuple[int, ...] | int | None:
    if text == nothing:
        return None
    return _split(text) if "," in text else int(text)


_WHOLE = reader(int, "not a whole number")

_KINDS: Mapping[str, Mapping[str, Any]] = {
    "bool": {"action": "store_true"},
    "str": {"type": str},
    "int": {"type": _WHOLE},
    "float": {"type": reader(float, "not a number")},
    "tuple[int, ...]": {"type": _WHOLE, "nargs": "+"},
    "tuple[int, ...] | None": {"type": reader(_split, "neither auto nor block counts such as 3,2,2,1")},
}
