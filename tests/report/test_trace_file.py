"""Where a trace may go: what is in the way is told before training, what fails later is a note."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.report.trace_file import TraceFile
from pipeline.spans import Span
from tests.support.traces import read_chrome

SPANS = [Span(0, "compute", "forward", 0, 5, 7)]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a folder, a pipe, links to a picture, and in a circle."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "other.png").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "linked").symlink_to("linked.png")
    (tmp_path / "twin.png").touch()
    (tmp_path / "twin").hardlink_to("twin.png")
    (tmp_path / "circle").symlink_to("circle")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "output", "message"),
    [
        ("folder", None, "(it is a folder); give a file, such as folder/trace.json"),
        ("new/", None, "(it is a folder); give a file"),
        ("pipe", None, "(pipe is no regular file); choose another file"),
        ("/dev/null", None, "(/dev/null is no regular file)"),
        ("other.json", None, "(other.png is no regular file)"),
        ("t.png", None, "(its picture has the same name); give a name that ends in .json"),
        ("linked", None, "(its picture has the same name)"),
        ("twin", None, "(its picture has the same name)"),
        ("nowhere/t.json", "run", "(no folder nowhere); create it first"),
        ("run/metrics.jsonl", "run", "belongs to the run folder); give another name"),
        ("folder/../run/curves.json", "run", "picture folder/../run/curves.png belongs to the run folder"),
        ("run", "run", "belongs to the run folder"),
        ("runs", "runs/today", "belongs to the run folder"),
        ("circle", None, "); choose another file"),
        ("x" * 300, None, "(File name too long); choose another file"),
    ],
)
def test_what_is_in_the_way_of_a_trace_is_told(path: str, output: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        TraceFile(path, output)
    assert str(caught.value).startswith(f"--trace {path} cannot be written (")


def test_a_trace_may_lie_in_a_run_folder_that_is_not_there_yet() -> None:
    file = TraceFile("run/t.json", "run")
    Path("run").mkdir()
    file.check_writable()
    assert list(Path("run").iterdir()) == [], "trying leaves nothing"


def test_a_file_that_cannot_be_opened_is_told() -> None:
    file = TraceFile("t.json", None)
    Path("t.png").mkdir()
    with pytest.raises(ConfigError, match=r"--trace t\.json cannot be written \(t\.png: Is a directory\); choose"):
        file.check_writable()


def test_what_fails_at_the_end_is_a_note_and_the_other_file_is_there(here: Path) -> None:
    file = TraceFile("t.json", None)
    Path("t.png").mkdir()
    (note,) = file.write(SPANS, {0: "stage 0"})
    assert note.startswith("the timeline t.png could not be written ([Errno 21] Is a directory")
    assert len(read_chrome("t.json")) == 1
    file = TraceFile("u.json", None)
    Path("u.json").mkdir()
    (note,) = file.write(SPANS, {0: "stage 0"})
    assert note.startswith("the trace u.json could not be written ([Errno 21] Is a directory")
    assert Path("u.png").stat().st_size > 0
