"""Progress on whatever a program has put in the place of standard output."""

from __future__ import annotations

import sys
from io import StringIO
from typing import Any

import pytest

from pipeline.report.console import is_terminal, standard_console
from pipeline.report.display import PlainDisplay, create_display
from tests.support.made_up import made_up, show


class Raises(StringIO):
    """Says in its own way that it does not know."""

    def isatty(self) -> bool:
        raise RuntimeError("no terminal here")


class WriteOnly:
    """No `flush`, no `isatty`, no `encoding`."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text


def closed() -> StringIO:
    stream = StringIO()
    stream.close()
    return stream


STREAMS = {"none": None, "text": StringIO(), "write": WriteOnly(), "closed": closed(), "raises": Raises()}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_plain_lines_go_to_whatever_takes_text(stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", stream)
    assert not is_terminal()
    display = create_display(quiet=False)
    assert isinstance(display, PlainDisplay)
    show(display, made_up())
    if isinstance(stream, WriteOnly):
        assert "stages busy" in stream.text
    if isinstance(stream, StringIO) and not stream.closed:
        assert "stages busy" in stream.getvalue()


def test_what_replaces_standard_output_later_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    console, later = standard_console(), StringIO()
    monkeypatch.setattr(sys, "stdout", later)
    console.print("seen")
    assert later.getvalue() == "seen\n"


@pytest.mark.parametrize("columns", ["0", "-1", "x"])
def test_a_width_that_cannot_be_hides_nothing(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    stream = StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    show(create_display(quiet=False), made_up())
    assert "stages busy" in stream.getvalue()
