"""Mistakes that only a run can find: data missing or damaged, folders in the way, devices that are not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.cli import parse
from pipeline.errors import ConfigError, DataError, PipelineError
from pipeline.training import Options, run
from tests.support.mistakes import write_mistakes

LATE: list[tuple[str, type[PipelineError], str]] = [
    ("--dataset mnist --data-dir nowhere", DataError, r"nowhere.*--download"),
    ("--dataset cifar10 --data-dir empty", DataError, r"empty.*--download"),
    ("--dataset fashion_mnist --data-dir damaged", DataError, r"damaged"),
    ("--dataset image_folder --data-dir empty", DataError, r"empty.*train"),
    (
        "--output finished",
        ConfigError,
        r"--output finished holds a run already \(summary\.json\); choose another folder, add --ov",
    ),
    ("--output broken.toml/run", ConfigError, r"--output broken\.toml/run cannot be written \(Not a directory\)"),
    ("--trace nowhere/t.json", ConfigError, r"--trace nowhere/t\.json cannot be written \(no folder nowhere\)"),
    ("--device cuda:99", ConfigError, r"--device is cuda:99, but .* GPU"),
]


@pytest.mark.parametrize(("flags", "kind", "message"), LATE)
def test_a_mistake_found_by_the_run_is_told_before_training(
    flags: str, kind: type[PipelineError], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_mistakes(tmp_path))
    command = parse(flags.split())
    with pytest.raises(PipelineError, match=message) as caught:
        run(command.config, Options(command.output, command.overwrite, command.trace))
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
