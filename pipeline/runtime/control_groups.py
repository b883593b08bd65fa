"""Control groups of the system: the limits that a container puts on its processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

__all__ = ["control_groups"]


def control_groups(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """Folders of the groups that limit this process by `controller`, of either version, from the innermost one on.

    A limit of any group above counts, too. `root` is where the system's files are.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        tree = root / "sys/fs/cgroup" / (controller if controllers else "")
        group = tree / path.lstrip("/")
        for folder in (group, *group.parents):
            yield folder
            if folder == tree:
                break
