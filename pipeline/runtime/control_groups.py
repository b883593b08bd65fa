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
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        controllers, _, path = line.partition(":")[2].partition(":")
        if not path or (controllers and controller not in controllers.split(",")):
            continue
        # Version 1 has a tree for each group of controllers, by the name of all, and mostly of each as well.
        for name in {controller, controllers} if controllers else {""}:
            tree = root / "sys/fs/cgroup" / name
            group = tree / path.lstrip("/")
            for folder in (group, *group.parents):
                yield folder
                if folder == tree:
                    break
