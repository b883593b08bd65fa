"""Pictures of errors against the epoch, as the paper's figure 2 draws them. Pure but for the file that is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.harness.pictures import Curves, draw
from benchmarks.paper.results import Kept, Run, Setting
from pipeline.config.paper import experiments, first_of

__all__ = ["draw_tables", "figure"]

_DRAWN = {"figure2": "cifar10/vgg11b"}
"""Tables that have a picture, and the network in it."""

Points = Sequence[tuple[float, float]]


def figure(table: str, kept: Kept) -> Curves | None:
    """Training and test error of all losses of a table, a panel a setting and kind; None where nothing was run."""
    panels: dict[str, dict[str, Points]] = {}
    for name in experiments():
        if name.startswith(f"{table}/"):
            loss = name.rpartition("/")[2]
            for setting, runs in kept.get(first_of(name), {}).values():
                for kind, points in _curves(runs[0]).items():
                    panels.setdefault(f"{kind}{_marked(setting)}", {})[loss] = points
    return Curves("epoch", "error, %", panels) if panels else None


def _marked(setting: Setting) -> str:
    return f"\n{setting.departure}" if setting.departure else ""


def _curves(run: Run) -> Mapping[str, Points]:
    train = [(float(epoch), value) for epoch, value in enumerate(run.train_curve, 1)]
    test = [(float(epoch), value) for epoch, value in enumerate(run.test_curve, 1) if value is not None]
    return {"training error (dropout on)": train, "test error": test}


def draw_tables(kept: Kept, folder: Path) -> list[str]:
    """Write the pictures that there is something for; the names of their tables."""
    drawn = []
    for table, network in _DRAWN.items():
        picture = figure(table, kept)
        if picture is not None:
            draw(f"{table}: {network}", picture, folder / f"{table}.png")
            drawn.append(table)
    return drawn
