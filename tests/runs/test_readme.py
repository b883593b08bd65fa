"""The README stays short, and its example and that of the library call run as written."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from pipeline.config.cli import GROUPS
from pipeline.config.fields import described
from pipeline.config.schema import TrainConfig
from tests.support.processes import ROOT, call, spawn

pytestmark = pytest.mark.runs

README = (ROOT / "README.md").read_text()


def example(page: str = README) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    return str(code)


def assert_learned(shown: str) -> None:
    """The digits network gets most of the 360 test images right."""
    (error,) = re.findall(r"^test error: (\d+\.\d+) %", shown, re.MULTILINE)
    assert float(error) < 20


def test_the_readme_has_at_most_140_lines() -> None:
    assert len(README.splitlines()) <= 140


def test_the_library_example_has_six_lines() -> None:
    assert len([line for line in example().splitlines() if line.strip()]) == 6


def test_the_library_example_runs_as_written(tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(example())
    done = call(script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_learned(done.stdout)
    assert [p for p in tmp_path.iterdir() if p != script] == [], "a library call leaves nothing behind unasked"


def test_the_library_example_runs_in_three_processes(tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(example())
    ends = spawn([str(script)], 3, 200, cwd=tmp_path)
    assert [end.status for end in ends] == [0, 0, 0], ends
    assert_learned(ends[0].stdout)
    assert [end.stdout for end in ends[1:]] == ["", ""]


def test_the_example_of_the_call_runs_as_written(tmp_path: Path) -> None:
    script = tmp_path / "call.py"
    script.write_text(example((ROOT / "docs" / "what-you-bring.md").read_text()))
    done = call(script, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert_learned(done.stdout)
    (right,) = re.findall(r"^tensor\((0\.\d+)\)$", done.stdout, re.MULTILINE)
    assert float(right) > 0.8
    assert (tmp_path / "runs" / "mine" / "summary.json").is_file()


def test_the_fields_of_the_call_are_the_flags_that_the_page_names() -> None:
    parts = [part for title in ("method", "schedule", "placement") for part in GROUPS[title]]
    assert {f.name for part in parts for f, _ in described(part)} == {f.name for f in fields(TrainConfig)}
