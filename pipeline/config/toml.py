"""The configuration as TOML: to text and back."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pipeline.config.schema import SECTIONS, DataConfig, ModelConfig, RunConfig, TrainConfig
from pipeline.errors import ConfigError

__all__ = ["from_toml", "read_network", "read_toml", "to_toml"]


_GONE = {
    ("train", "locality"): "which `segments` has replaced: drop the entry for a local loss at every block, or give "
    "segments = [3, 5], the blocks of each group",
}
"""Entries of older versions, and what replaced them."""


def to_toml(config: RunConfig | TrainConfig) -> str:
    """The configuration as TOML text; unset fields are left out."""
    sections = asdict(config) if isinstance(config, RunConfig) else {"train": asdict(config)}
    lines = []
    for section, values in sections.items():
        lines.append(f"[{section}]")
        # JSON's strings, numbers, booleans and lists are TOML's as well.
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items() if value is not None]
        lines.append("")
    return "\n".join(lines)


def from_toml(text: str, source: str = "the configuration") -> RunConfig:
    """Parse what `to_toml` wrote. Raises ConfigError that names `source` and the offending entry."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not TOML ({error}); mend it or write one with --print-config") from error
    for section, values in table.items():
        if section not in SECTIONS or not isinstance(values, dict):
            raise ConfigError(f"{source} has an unknown section [{section}]; known are {', '.join(SECTIONS)}")
        known = {f.name for f in fields(SECTIONS[section])}
        for key, value in values.items():
            if (section, key) in _GONE:
                raise ConfigError(f"{source} has {section}.{key}, {_GONE[section, key]}")
            if key not in known:
                raise ConfigError(
                    f"{source} has an unknown entry {section}.{key}; known are {', '.join(sorted(known))}"
                )
            _check_type(source, section, key, value)
    return RunConfig(
        data=DataConfig(**table.get("data", {})),
        model=ModelConfig(**table.get("model", {})),
        train=TrainConfig(**table.get("train", {})),
    )


def read_toml(path: str) -> RunConfig:
    """Read a `config.toml`. Raises ConfigError if the file is missing or wrong."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"--config {path} cannot be read ({reason}); give the config.toml of a run") from error
    return from_toml(text, source=path)


def read_network(path: str) -> tuple[ModelConfig, str]:
    """Network and loss of a `config.toml`, older versions' included. Raises ConfigError if it is missing or wrong."""
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        return ModelConfig(**table["model"]), table["train"]["loss"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} does not describe a network ({error}); give the folder of a finished run"
        ) from error


def _check_type(source: str, section: str, key: str, value: Any) -> None:
    """Compare a TOML value with the field's annotation, so that a wrong kind is named before any check of ranges."""
    annotation = str({f.name: f.type for f in fields(SECTIONS[section])}[key])
    kinds: tuple[type, ...]
    if key == "segments":
        kinds, wanted = (list, int), "a whole number or a list of them"
    elif "tuple" in annotation:
        kinds, wanted = (list,), "a list of whole numbers"
    elif "str" in annotation:
        kinds, wanted = (str,), "text"
    elif "bool" in annotation:
        kinds, wanted = (bool,), "true or false"
    elif "float" in annotation:
        kinds, wanted = (int, float), "a number"
    else:
        kinds, wanted = (int,), "a whole number"
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds != (bool,)):
        raise ConfigError(f"{source} has {section}.{key} = {value!r}; give {wanted}")
