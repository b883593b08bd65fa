"""A finished run evaluated at all its exits, on its own test set: tables, exits.json, exits.png."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.text import Text
from torch import Tensor

from pipeline.config.data import DataConfig
from pipeline.config.evaluation import Evaluation
from pipeline.config.method import Method
from pipeline.config.toml import read_data, read_method, read_model
from pipeline.data.batches import Batches
from pipeline.errors import ConfigError, DataError
from pipeline.learning.exit_figures import confusion, exit_figures
from pipeline.learning.exits import EarlyExits
from pipeline.report.attempt import attempt
from pipeline.report.console import standard_console
from pipeline.report.exit_plot import save_exits
from pipeline.report.exit_records import Evaluated, ExitRecord
from pipeline.report.exit_tables import evaluation_lines
from pipeline.report.run_folder import EVALUATION, write_whole
from pipeline.runtime.checkpoint import digest
from pipeline.runtime.devices import device_named
from pipeline.settings import plain_settings
from pipeline.text import json_text, printable

__all__ = ["collect_scores", "evaluate"]


@plain_settings()
def evaluate(asked: Evaluation, load: Callable[[], EarlyExits]) -> Evaluated:
    """Evaluate the run that `load` gives the network of; print the tables, and write both files.

    Raises:
        ConfigError: the run's data were a user's own, a GPU that is not there, a folder that cannot be written.
        DataError: the folder holds no finished run, or its data are not there, or others.
    """
    config = str(Path(asked.run) / "config.toml")
    data, method = _data(asked, config), read_method(config)
    device, folder = device_named(asked.device), _folder(asked)
    model = load().as_trained()
    size = asked.batch_size or method.batch_size
    batches = Batches.from_config(data, seed=method.seed, batch_size=size, device=device)
    _check_data(asked, batches, model)
    weights_sha256 = digest(dict(model.blocks.state_dict()))
    scores, labels = collect_scores(model.to(device), batches.test())
    figures = exit_figures(scores, labels, tuple(asked.thresholds), model.cumulative_costs)
    found = Evaluated(
        command=asked.command,
        dataset=data.dataset,
        model=read_model(config)[0].model,
        loss=method.loss,
        weights_sha256=weights_sha256,
        device=str(device),
        batch_size=size,
        samples=figures.samples,
        exits=_exits(model, figures.error_percent),
        average_error_percent=figures.average_error_percent,
        thresholds=figures.thresholds,
        confusion=confusion(scores[-1], labels) if asked.confusion else None,
    )
    _print([*_notes(method), *evaluation_lines(found)])
    _print(["", *_write(found, folder)])
    return found


def collect_scores(model: EarlyExits, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[tuple[Tensor, ...], Tensor]:
    """Class scores [N, K] of every exit, and the labels [N], both on the CPU."""
    parts, labels = [], []
    with torch.no_grad():
        for images, wanted in batches:
            parts.append([scores.cpu() for scores in model(images)])
            labels.append(wanted.cpu())
    return tuple(torch.cat(each) for each in zip(*parts, strict=True)), torch.cat(labels)


def _exits(model: EarlyExits, errors: tuple[float, ...]) -> tuple[ExitRecord, ...]:
    columns = zip(model.exits, model.layers, errors, model.costs, model.cumulative_costs, strict=True)
    return tuple(ExitRecord(number, *row) for number, row in enumerate(columns))


def _data(asked: Evaluation, config: str) -> DataConfig:
    """The images of the run, with what was asked for in their place."""
    if not Path(config).exists():
        raise DataError(f"{asked.run} holds no finished run (no config.toml); give the folder of a run that has ended")
    data = read_data(config)
    if data is None:
        raise ConfigError(
            f"the data of {asked.run} were your own; evaluate it with pipeline.load_model({asked.run!r}, blocks, "
            "exits=True)"
        )
    given: dict[str, Any] = {
        "data_dir": asked.data_dir,
        "test_limit": asked.test_limit,
        "download": asked.download or None,
    }
    return replace(data, **{name: value for name, value in given.items() if value is not None})


def _folder(asked: Evaluation) -> Path:
    """Where the results go. Raises ConfigError where nothing can be written, before anything is computed."""
    folder = Path(asked.run if asked.output is None else asked.output)
    try:
        if asked.output is not None:
            folder.mkdir(parents=True, exist_ok=True)
        if folder.is_dir() and not os.access(folder, os.W_OK):
            raise PermissionError(0, "no permission to write there")
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def _unwritable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{folder} cannot be written ({error.strerror}); choose another folder with --output")


def _check_data(asked: Evaluation, batches: Batches, model: EarlyExits) -> None:
    """Raise DataError for images that the network was not trained for."""
    found, wanted = (tuple(batches.shape), batches.classes), (model.shape, model.classes)
    if found != wanted:
        raise DataError(
            f"the data are images of {list(found[0])} in {found[1]} classes, but the network of {asked.run} is for "
            f"{list(wanted[0])} and {wanted[1]}; point --data-dir at the data that it was trained on"
        )


def _notes(method: Method) -> list[str]:
    if method.precision == "fp32":
        return []
    return [f"note: trained in {method.precision}, evaluated in fp32: errors may differ from the run's own"]


def _write(found: Evaluated, folder: Path) -> list[str]:
    """Write both files; what a person should read of it. Raises ConfigError where the figures cannot be written."""
    text = json_text(asdict(found), indent=2) + "\n"
    figures, picture = (folder / name for name in EVALUATION)
    try:
        write_whole(figures, lambda part: part.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise _unwritable(folder, error) from error
    notes = attempt(str(picture), lambda: write_whole(picture, partial(save_exits, found)))
    return [f"written: {figures}" + ("" if notes else f", {picture}"), *(f"note: {note}" for note in notes)]


def _print(lines: Iterable[str]) -> None:
    """On standard output, if anybody listens; rich ends the program where a pipe is broken."""
    with contextlib.suppress(OSError, ValueError, SystemExit):
        console = standard_console()
        for line in lines:
            console.print(Text(printable(line, console.encoding)), soft_wrap=True)
