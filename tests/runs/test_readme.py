"""The README's example runs as written and is as short as it says; its flags are the command's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.config.cli import _parser
from tests.support.processes import ROOT, call, spawn

README = (ROOT / "README.md").read_text()


def example() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    return str(code)


def test_the_library_example_has_at_most_15_lines() -> None:
    assert len([line for line in example().splitlines() if line.strip()]) <= 15


@pytest.mark.runs
def test_the_library_example_runs_as_written(tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(example())
    done = call(script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"test error \d+\.\d %\n", done.stdout)
    assert not [p for p in tmp_path.iterdir() if p != script]


@pytest.mark.runs
def test_the_library_example_runs_in_three_processes(tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(example())
    ends = spawn([str(script)], 3, 200, cwd=tmp_path)
    assert [end.status for end in ends] == [0, 0, 0], ends
    assert all(re.fullmatch(r"test error \d+\.\d %\n", end.stdout) for end in ends)


def test_the_table_of_flags_is_complete() -> None:
    known = {option for action in _parser()._actions for option in action.option_strings if option.startswith("--")}
    table = README.partition("## Command line")[2].partition("## Run folder")[0]
    named = set(re.findall(r"--[a-z][a-z-]*", table))
    assert known == named
