"""The timeline that `--trace` asks for: a Chrome trace, and a picture beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.report.attempt import attempt
from pipeline.report.plots import save_timeline
from pipeline.report.run_folder import FILES
from pipeline.report.trace import write_chrome
from pipeline.spans import Span

__all__ = ["TraceFile"]


class TraceFile:
    """Refuses, before any training, what could not be written after it, or would be written over.

    Args:
        path: of the trace; its picture has the same name, but ends in `.png`.
        output: the run folder, which need not be there yet.
    """

    def __init__(self, path: str, output: str | None) -> None:
        self.path = Path(path)
        self.picture = self.path.with_suffix(".png") if self.path.name else self.path
        try:
            objection = self._objection(path.endswith("/"), None if output is None else Path(output))
        except (OSError, RuntimeError) as error:  # a name too long, links in a circle
            objection = (error.strerror or "" if isinstance(error, OSError) else str(error), "choose another file")
        if objection is not None:
            raise ConfigError(f"--trace {path} cannot be written ({objection[0]}); {objection[1]}")

    def _objection(self, folder: bool, output: Path | None) -> tuple[str, str] | None:
        """What is wrong, and what to do."""
        path, picture = self.path, self.picture
        if folder or path.is_dir():
            return "it is a folder", f"give a file, such as {path / 'trace.json'}"
        for place in (path, picture):
            if place.exists() and not place.is_file():
                return f"{place} is no regular file", "choose another file"
        if _same(path, picture):
            return "its picture has the same name", "give a name that ends in .json"
        if output is not None:
            ours = (*(output / name for name in FILES), output, *output.parents)
            if any(_same(place, own) for place in (path, picture) for own in ours):
                return f"it or its picture {picture} belongs to the run folder", "give another name"
        made = output is not None and _same(path.parent, output)
        return None if made or path.parent.is_dir() else (f"no folder {path.parent}", "create it first")

    def check_writable(self) -> None:
        """Raise ConfigError where one of the files cannot be opened; the run folder must be there."""
        for place in (self.path, self.picture):
            new = not os.path.lexists(place)
            try:
                place.open("ab").close()
                if new:
                    place.unlink()
            except OSError as error:
                which = "" if place is self.path else f"{place}: "
                raise ConfigError(
                    f"--trace {self.path} cannot be written ({which}{error.strerror}); choose another file"
                ) from error

    def write(self, spans: Sequence[Span], names: Mapping[int, str]) -> list[str]:
        """Write both, naming the stages; what the user should know where one of them cannot be."""
        notes = attempt(f"the trace {self.path}", lambda: write_chrome(self.path, spans, names))
        return notes + attempt(f"the timeline {self.picture}", lambda: save_timeline(spans, self.picture))


def _same(path: Path, other: Path) -> bool:
    """Whether two paths lead to one file, which need not be there."""
    if path.exists() and other.exists():
        return path.samefile(other)
    return path.resolve() == other.resolve()
