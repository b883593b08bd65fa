"""Text that leaves the program: JSON that every reader takes, and lines that are safe on any terminal."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["brief", "json_text", "one_line", "printable", "printable_lines", "shown"]

_BRIEF = 200  # characters of a value in a message

# Control characters, separators of lines and paragraphs, marks that turn the direction of writing, and surrogates,
# which stand for bytes of a name that are no UTF-8.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LINE_BREAK = re.compile(r"\s*[\r\n]\s*")


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as strict JSON in ASCII; JSON has no word for a number that is not finite, which becomes null."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def printable(text: str, encoding: str = "utf-8") -> str:
    """`text` without anything that steers a terminal or that `encoding` cannot say: escaped as in a TOML string."""
    safe = _UNSAFE.sub(lambda found: _escaped(found[0]), text)
    try:
        safe.encode(encoding)
    except UnicodeEncodeError:
        return "".join(one if one.encode(encoding, "ignore") else _escaped(one) for one in safe)
    return safe


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def printable_lines(text: str, encoding: str = "utf-8") -> str:
    """Likewise, with its lines as they are."""
    return "\n".join(printable(line, encoding) for line in text.split("\n"))


def brief(text: str) -> str:
    """A name or a reason as a message tells it: on one line, printable, and cut where it is long."""
    cut = one_line(text[: _BRIEF + 1])
    return cut if len(text) <= _BRIEF else f"{cut[:_BRIEF]}..."


def shown(value: Any) -> str:
    """A value as a message tells it, whatever it is."""
    try:
        return brief(" ".join(repr(value).split()))
    except ValueError:  # Python writes no longer ones
        return "a number of thousands of digits"
    except (RecursionError, MemoryError):
        return "nested too deeply"
    except Exception:  # whatever the user's own code raises
        return f"a {type(value).__name__}"


def one_line(text: str, encoding: str = "utf-8") -> str:
    """A message on one line, printable."""
    return printable(_LINE_BREAK.sub(" ", text.strip()), encoding)
