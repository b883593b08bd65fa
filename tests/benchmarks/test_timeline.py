"""The picture of stages that sleep."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.emulation import timeline
from benchmarks.emulation.load import Load, Window
from benchmarks.emulation.timeline import draw_timeline


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "0 files are named; give one, such as: python -m benchmarks.emulation.timeline docs/timeline.png"),
        (["a", "b"], "2 files are named; give one, such as: "),
        (["file/a.png"], "the folder file cannot be written (File exists); choose another folder"),
        (["folder"], "folder is a folder; give a file in it"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_run(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(timeline, "draw_timeline", lambda path: pytest.fail("it was drawn"))
    assert timeline.main(arguments) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: {told}")


@pytest.mark.bench
@pytest.mark.usefixtures("forked_crews")
def test_the_timeline_of_sleeping_stages_is_drawn(tmp_path: Path) -> None:
    draw_timeline(tmp_path / "timeline.png", Load(2, 0.01), Window(1, 7))
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")
