"""The configuration as TOML: to text and back."""

from __future__ import annotations

import difflib
import errno
import json
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from pipeline.config.method import Method
from pipeline.config.paths import expanded
from pipeline.config.schema import SECTIONS, DataConfig, ModelConfig, RunConfig, TrainConfig
from pipeline.errors import ConfigError
from pipeline.text import brief, printable, shown

__all__ = ["GONE", "from_toml", "read_data", "read_method", "read_model", "read_run", "read_toml", "to_toml"]

P = TypeVar("P")

_LONGEST = 1_000_000  # characters of a configuration
_MOST_DOTS = 5000  # Python's reader takes memory with the square of a dotted key's parts; a path may have 4096

GONE: Mapping[str, tuple[str, str]] = {
    "train.locality": ("--segments", "drop the entry, or give segments = [3, 5], the blocks of each group"),
}
"""Entries that older versions wrote: the flag that has replaced each, and what to do about it."""


def to_toml(config: RunConfig | TrainConfig) -> str:
    """The configuration as TOML text; unset fields are left out."""
    sections = asdict(config) if isinstance(config, RunConfig) else {"train": asdict(config)}
    lines = []
    for section, values in sections.items():
        entries = (f"{key} = {_value(value)}" for key, value in values.items() if value is not None)
        lines += [f"[{section}]", *entries, ""]
    return "\n".join(lines)


def _value(value: Any) -> str:
    """JSON's values are TOML's as well, but for escapes: TOML knows no surrogates, and wants DEL escaped."""
    return printable(json.dumps(value, ensure_ascii=False, allow_nan=False))


def from_toml(text: str, source: str = "the configuration", gone: Mapping[str, tuple[str, str]] = GONE) -> RunConfig:
    """Parse what `to_toml` wrote. Raises ConfigError that names `source` and the offending entry."""
    table = _table(text, source)
    for section, values in table.items():
        if section not in SECTIONS or not isinstance(values, dict):
            raise ConfigError(f"{source} has an unknown section [{brief(section)}]; known are {', '.join(SECTIONS)}")
        for key, value in values.items():
            _check_entry(source, section, key, value, gone)
    sections: dict[str, Any] = {name: section(**table.get(name, {})) for name, section in SECTIONS.items()}
    return RunConfig(**sections)


def read_toml(path: str | os.PathLike[str]) -> RunConfig:
    """Read a `config.toml`. Raises ConfigError if the file is missing or wrong."""
    path = expanded("--config", path)
    return from_toml(_read(path, f"--config {path}"), source=path)


def read_run(folder: str) -> RunConfig:
    """Read the `config.toml` of a run that is to go on. Raises as `read_toml`."""
    path = f"{folder}/config.toml"
    return from_toml(_read(path, f"--resume {folder}: {path}", "the folder of a run"), source=path)


def read_model(path: str) -> tuple[ModelConfig, str]:
    """The network of a `config.toml` and the name of the loss that trained it, whichever version wrote the rest."""
    table = _table(_read(path, path), path)
    model, train = (table.get(name, {}) for name in ("model", "train"))
    if not isinstance(model, dict) or not isinstance(train, dict):
        raise ConfigError(f"{path} has no sections [model] and [train]; give the config.toml of a run")
    loss = {key: value for key, value in train.items() if key == "loss"}
    for section, values in (("model", model), ("train", loss)):
        for key, value in values.items():
            _check_entry(path, section, key, value, {})
    return ModelConfig(**model), Method(**loss).loss


def read_method(path: str) -> Method:
    """How the blocks of a `config.toml` answer, and in which batches, whichever version wrote the rest."""
    return _part(path, "train", Method, _ANSWERING) or Method()


def read_data(path: str) -> DataConfig | None:
    """The images of a `config.toml`, whichever version wrote the rest; None where they were a user's own."""
    return _part(path, "data", DataConfig, [f.name for f in fields(DataConfig)])


_ANSWERING = ("loss", "classifier", "decoder_dim", "target_projection", "segments", "batch_size", "precision", "seed")


def _part(path: str, section: str, part: Callable[..., P], names: Sequence[str]) -> P | None:
    """The entries of a section that have one of the `names`, or None without the section."""
    values = _table(_read(path, path), path).get(section)
    if values is None:
        return None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} has no section [{section}]; give the config.toml of a run")
    known = {key: values[key] for key in names if key in values}
    for key, value in known.items():
        _check_entry(path, section, key, value, {})
    return part(**known)


def _read(path: str, name: str, wanted: str = "the config.toml of a run") -> str:
    try:
        if Path(path).exists() and not Path(path).is_file():  # a pipe would wait
            raise OSError(errno.EINVAL, "no ordinary file")
        with Path(path).open(encoding="utf-8-sig") as file:  # an editor may have put a mark before it
            text = file.read(_LONGEST + 1)
        if len(text) > _LONGEST:
            raise OSError(errno.EFBIG, f"more than {_LONGEST:,} characters")
        return text
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{name} cannot be read ({reason}); give {wanted}") from error


def _table(text: str, source: str) -> dict[str, Any]:
    try:
        if text.count(".") > _MOST_DOTS:
            raise ValueError(f"more than {_MOST_DOTS} dots")
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also of numbers with thousands of digits
        raise ConfigError(
            f"{source} is not TOML ({brief(str(error))}); mend it or write one with --print-config"
        ) from error


def _check_entry(source: str, section: str, key: str, value: Any, gone: Mapping[str, tuple[str, str]]) -> None:
    """Name an entry that has gone, is unknown, or is of the wrong kind, before any check of ranges."""
    entry, known = f"{section}.{brief(key)}", {f.name: str(f.type) for f in fields(SECTIONS[section])}
    if entry in gone:
        flag, remedy = gone[entry]
        raise ConfigError(f"{source} has {entry}, which {flag} has replaced; {remedy}")
    if key not in known:
        near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
        remedy = f"like it are {', '.join(near)}" if near else "docs/flags.md names those that there are"
        raise ConfigError(f"{source} has an unknown entry {entry}; {remedy}")
    kinds, wanted = _KINDS[known[key].removesuffix(" | None")]
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds != (bool,)):
        raise ConfigError(f"{source} has {entry} = {shown(value)}; give {wanted}")


# What TOML's reader gives for a field, by its annotation, and how to say it.
_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "bool": ((bool,), "true or false"),
    "str": ((str,), "text"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "tuple[int, ...]": ((list,), "a list of whole numbers"),
    "tuple[int, ...] | int": ((list, int), "a whole number or a list of them"),
}
