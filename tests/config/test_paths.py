"""Paths as a user gives them: `~` in every place, and names that come back from a file whatever they are made of."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.cli import parse
from pipeline.config.paths import absolute, expanded
from pipeline.config.schema import DataConfig, RunConfig
from pipeline.config.toml import from_toml, read_toml, to_toml
from pipeline.errors import ConfigError

ODD = ["with space", "käse/画像/🙂", 'quo"te', "back\\slash", "tab\tline\nend", "\x1b[31m", "\x7f\x9b\u2028", "#=[x]"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("given", ["~/x", Path("~/x"), b"~/x"])
def test_a_tilde_is_the_home_folder(given: Any, home: Path) -> None:
    assert expanded("--output", given) == f"{home}/x"


@pytest.mark.parametrize("given", ["x", "./~", "./~x/y", "a/~", "/~"])
def test_a_tilde_anywhere_else_is_a_name(given: str, home: Path) -> None:
    assert expanded("--output", given) == given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "~nobody-of-that-name/x",
            r"--output is '~nobody-of-that-name/x', but no home .*; write \./~nobody",
        ),
        ("", "--output is '', which no file can be called; give a path"),
        ("a\0b", r"--output is 'a\\x00b', which no file can be called"),
        (5, "--output is 5; give a path"),
    ],
)
def test_what_is_no_path_is_told(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        expanded("--output", given)


@pytest.mark.parametrize("given", ["run", "./run", Path("run"), b"run", "run/", "~/run"])
def test_an_absolute_path_stays_what_it_is_when_the_working_folder_changes(
    given: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    assert absolute("--output", given) == f"{home}/run"
    monkeypatch.chdir("/")
    assert absolute("--output", absolute("--output", f"{home}/run")) == f"{home}/run"


def test_a_working_folder_that_has_been_removed_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "gone").mkdir()
    monkeypatch.chdir(home / "gone")
    (home / "gone").rmdir()
    with pytest.raises(ConfigError, match="the working folder has been removed; change to one that is there"):
        absolute("--output", "run")
    assert absolute("--output", "~/run") == f"{home}/run"


def test_every_path_of_the_command_line_and_of_a_file_knows_the_home_folder(home: Path) -> None:
    (home / "c.toml").write_text('\ufeff[data]\ndata_dir = "~/images"\n')  # with an editor's mark before it
    command = parse(["--config=~/c.toml", "--output=~/run", "--trace=~/t.json"])
    assert (command.output, command.trace) == (f"{home}/run", f"{home}/t.json")
    assert command.config.data.data_dir == f"{home}/images"
    assert parse(["--data-dir=~/d"]).config.data.data_dir == f"{home}/d"
    assert DataConfig(data_dir=Path("~/d")).data_dir == f"{home}/d"  # type: ignore[arg-type]  # a program may give one
    assert read_toml(Path("~/c.toml")).data.data_dir == f"{home}/images"


@pytest.mark.parametrize("name", ODD)
def test_a_name_comes_back_from_a_configuration_whatever_it_is_made_of(name: str) -> None:
    text = to_toml(RunConfig(data=DataConfig(data_dir=name)))
    assert from_toml(text).data.data_dir == tomllib.loads(text)["data"]["data_dir"] == name
    assert not set(text) & set("\x1b\x7f\x9b\t\u2028")


def test_a_folder_that_no_configuration_can_hold_is_told() -> None:
    with pytest.raises(ConfigError, match=r"--data-dir is 'k\\udce9', whose name is not UTF-8.*; rename the folder"):
        DataConfig(data_dir="k\udce9")
