"""The page of the paper's experiments: paper and ours beside each other, made from what is kept. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from benchmarks.paper.behind import Behind, all_behind
from benchmarks.paper.course import Course, courses
from benchmarks.paper.order import Comparison, comparisons
from benchmarks.paper.results import Kept, Run, Setting
from pipeline.config.paper import Experiment, experiments, first_of
from pipeline.report.render import plural

__all__ = ["error", "page"]

_TABLES = {
    "table4": "Table 4: CIFAR-10",
    "table5": "Table 5: CIFAR-10, nothing sent back even inside a layer",
    "table6": "Table 6: CIFAR-100",
    "table9": "Table 9: similarity matching as a complement to global backprop",
    "figure2": "Figure 2: training and test error, vgg11b on CIFAR-10",
    "paper": "The authors' other rows",
    "segments": "Not in the paper: how many segments a residual network wants",
}

_HEAD = """\
# The paper's experiments

Every row of the tables of Nøkland & Eidnes (ICML 2019) with the published test error and ours, in percent. This page
is written by `python -m benchmarks paper` from the JSON files beside it. Ours is the error after the last epoch: the
mean over seeds, ± their standard deviation where there are several. Whatever differs from the recipe is said: a
*shortened* schedule keeps the places of its milestones, and its errors are not to be held against the paper's as they
are. Nor is its order of the losses: local losses start behind and catch up, as *on the way* shows wherever several
losses have been run in full. And similarity wants wide layers: after an epoch of vgg8b `predsim` is behind `pred` at
an eighth of the width, ahead at twice that on Fashion-MNIST, and on CIFAR-10 still behind at twice and level at four
times (the rows of one epoch, one seed). Rows with the same settings stand in several tables and are trained once.

Data sets are looked for in `./data` (`--data-dir`) and fetched with `--download` after `--`. The first command takes
weeks without a GPU. Runs lie in `runs/paper`, and what they come to is written here, or with `--results DIR` there.

    python -m benchmarks paper --rows table4/cifar10/vgg8b --seeds 3             # in full, as published
    python -m benchmarks paper --rows 'table4/cifar10/mlp/*' --epoch-scale 0.05  # a twentieth of every schedule
    python -m benchmarks paper --rows '*/predsim' --processes 4                  # with four stages
    python -m benchmarks paper --rows table9 -- --width 0.25 --device cuda       # flags of launch/pipeline_train.py
    torchrun --nproc_per_node=4 launch/pipeline_train.py --recipe table4/cifar10/vgg8b/predsim  # one row, by hand

Stopped (Ctrl-C, or a signal) it leaves a checkpoint; the same command goes on from there. What the blocks' own
classifiers of a run answer, and what leaving at the first confident one saves, `python launch/evaluate.py RUN` tells
and draws: [early exits](../../../docs/run-folder.md#early-exits)."""

_COLUMNS = ("row", "paper", "ours", "seeds", "epochs", "otherwise as published, but", "machine")


def page(kept: Kept, pictures: Sequence[str] = ()) -> str:
    """The whole page as Markdown; `pictures` are the names of tables that have one."""
    parts = [_HEAD]
    for table, title in _TABLES.items():
        parts += [f"## {title}", _claim(table, kept)]
        if table in pictures:
            parts.append(f"![{title}]({table}.png)")
        parts.append(_table(table, kept))
        parts += [_on_the_way(course) for course in courses(table, kept)]
        parts += [_behind(one) for one in all_behind(table, kept)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(table: str, kept: Kept) -> str:
    lines = [f"| {' | '.join(_COLUMNS)} |", f"| {' | '.join('---' for _ in _COLUMNS)} |"]
    for name, experiment in experiments().items():
        if name.partition("/")[0] == table:
            lines += [f"| {' | '.join(cells)} |" for cells in _lines(name, experiment, kept)]
    return "\n".join(lines)


def _lines(name: str, experiment: Experiment, kept: Kept) -> Iterator[tuple[str, ...]]:
    """A line for each setting that was run, the nearest to the recipe first; one if none was."""
    row = name + (" (assumed)" if experiment.assumed and experiment.error_percent else "")
    paper = "" if experiment.error_percent is None else f"{experiment.error_percent:.2f}"
    found = sorted(kept.get(first_of(name), {}).values(), key=lambda one: (bool(one[0].departure), -one[0].epochs))
    if not found:
        yield row, paper, "not run", "", f"{experiment.config.train.epochs}", "", ""
    for setting, runs in found:
        epochs = f"{setting.epochs} of {setting.recipe_epochs}"
        changed = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in setting.changes.items())
        yield row, paper, error(runs), str(len(runs)), epochs, _marked(setting, changed), _machines(runs)


def _on_the_way(course: Course) -> str:
    losses = list(next(iter(course.errors.values())))
    lines = [f"| epoch | {' | '.join(losses)} |", f"| {' | '.join('---' for _ in range(len(losses) + 1))} |"]
    for epoch, errors in course.errors.items():
        lines.append(f"| {epoch} | {' | '.join(f'{errors[loss]:.2f}' for loss in losses)} |")
    return f"On the way, {course.network}, test error in percent:\n\n" + "\n".join(lines)


def _behind(found: Behind) -> str:
    where = found.network + (f", {found.departure}" if found.departure else "")
    lines = [
        f"Against backprop, {where}, {found.error:.2f} % over {plural(found.seeds, 'seed')}:\n",
        "| loss | test error, % | points behind backprop, seed by seed, ± standard error |",
        "| --- | --- | --- |",
        *(f"| {o.name} | {o.error:.2f} | {o.gap.mean:+.2f} ± {o.gap.standard_error:.2f} |" for o in found.others),
    ]
    return "\n".join(lines)


def _marked(setting: Setting, changed: str) -> str:
    short = "shortened" if setting.epochs < setting.recipe_epochs else ""
    return ", ".join(part for part in (short, changed) if part)


def error(runs: Sequence[Run]) -> str:
    """Mean test error, and standard deviation where there are several seeds: 8.61, 8.61 ± 0.12."""
    errors = [run.test_error_percent for run in runs]
    spread = f" ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
    return f"{statistics.fmean(errors):.2f}{spread}"


def _machines(runs: Sequence[Run]) -> str:
    """What computed: a GPU, or threads of a CPU."""
    return "; ".join(dict.fromkeys(_machine(run) for run in runs))


def _machine(run: Run) -> str:
    device = run.machine["devices"][0] if run.device.startswith("cuda") and run.machine["devices"] else ""
    threads = sum(run.threads)
    chip = " ".join(str(run.machine["cpu"]).split()[:2])
    where = device or f"{threads} {'core' if threads == 1 else 'cores'} of an {chip}"
    return where + ("" if run.precision == "fp32" else f", {run.precision}")


def _claim(table: str, kept: Kept) -> str:
    """A sentence on whether the paper's ordering of the losses holds in our runs."""
    found = comparisons(table, kept)
    if not found:
        return "No two losses of one network have been run here, so nothing can be said of their order."
    told = [one for one in found if one.paper]
    if not told:
        return " ".join(f"Ours, {_called(one)}: {_order(one.ours)}." for one in found)
    details = "; ".join(
        f"{_called(one)}: paper {_order(one.paper)}, ours {_order({loss: one.ours[loss] for loss in one.paper})}"
        for one in told
    )
    return f"{_verdict(told)} ({details})."


def _verdict(found: Sequence[Comparison]) -> str:
    pairs, agreeing = sum(len(one.pairs) for one in found), sum(one.agreeing for one in found)
    close = sum(len(one.close) for one in found)
    if not pairs:
        return "Our errors are too close to tell whether the paper's order of the losses holds"
    held = "holds" if agreeing == pairs else f"holds in {agreeing} of {pairs} pairs of losses"
    more = f", {plural(close, 'pair')} too close to tell" if close else ""
    return f"The paper's order of the losses {held} in our runs{more}"


def _called(one: Comparison) -> str:
    return one.network + (f", {one.departure}" if one.departure else "")


def _order(errors: Mapping[str, float]) -> str:
    """Best first, with the errors."""
    return " < ".join(f"{loss} {errors[loss]:.2f}" for loss in sorted(errors, key=lambda loss: errors[loss]))
