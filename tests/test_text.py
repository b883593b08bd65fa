"""Text that leaves the program: strict JSON, and nothing that steers a terminal."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from pipeline.errors import ConfigError, DataError, Interrupted, StageFailure
from pipeline.text import json_text, one_line, printable, printable_lines


def strict(text: str) -> Any:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_has_null_for_what_is_not_finite_however_deep() -> None:
    value = {"a": [1.5, math.nan, (math.inf, None)], "b": {"c": -math.inf, "d": "nan"}, "e": math.nan}
    assert strict(json_text(value)) == {"a": [1.5, None, [None, None]], "b": {"c": None, "d": "nan"}, "e": None}


def test_finite_json_is_as_it_was() -> None:
    value = {"a": [1, 2.5, "é\ud800"], "b": None}
    assert json_text(value, indent=2) == json.dumps(value, indent=2)
    assert json_text(value).isascii()


@pytest.mark.parametrize(
    ("text", "encoding", "safe"),
    [
        ("Ärger 画像 🙂 a\\b", "utf-8", "Ärger 画像 🙂 a\\b"),
        ("Ärger 🙂", "ascii", "\\u00c4rger \\U0001f642"),
        ("Ärger 🙂", "latin-1", "Ärger \\U0001f642"),
        ("\x1b[31mred\x07\x7f\x9b2J", "utf-8", "\\u001b[31mred\\u0007\\u007f\\u009b2J"),
        ("a\nb\tc\u2028d", "utf-8", "a\\u000ab\\u0009c\\u2028d"),
        ("left\u202etfel", "utf-8", "left\\u202etfel"),
        ("not UTF-8: \udcff", "utf-8", "not UTF-8: \\udcff"),
        ("not UTF-8: \udcff", "ascii", "not UTF-8: \\udcff"),
    ],
)
def test_what_a_terminal_may_not_see_is_escaped(text: str, encoding: str, safe: str) -> None:
    assert printable(text, encoding) == safe
    safe.encode(encoding)


def test_a_message_is_one_line_and_keeps_the_spaces_of_a_path() -> None:
    assert one_line("error: a  b\x1b\n   c\r\n") == "error: a  b\\u001b c"
    assert printable_lines("a\n\x1b\nb") == "a\n\\u001b\nb"


@pytest.mark.parametrize("kind", [ConfigError, DataError, StageFailure, Interrupted])
def test_what_a_program_catches_is_one_printable_line_whatever_it_names(kind: type[Exception]) -> None:
    error = kind("--output a\nb\x1b[31m\u202e\udcff \N{CAT FACE} cannot be written;\n  choose another folder")
    assert str(error) == (
        "--output a b\\u001b[31m\\u202e\\udcff \N{CAT FACE} cannot be written; choose another folder"
    )
    str(error).encode()
