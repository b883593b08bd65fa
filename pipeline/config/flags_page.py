"""Prints docs/flags.md from the fields that the command line is made of: python -m pipeline.config.flags_page."""

from __future__ import annotations

from pipeline.config.cli import EPILOG, GROUPS
from pipeline.config.fields import described, flag_name

__all__ = ["flags_page"]

_OPENING = f"""# Flags

    torchrun --nproc_per_node=4 launch/pipeline_train.py [flags]     4 stages, 4 processes
    python launch/pipeline_train.py [flags]                          all stages in one process, the same weights

{EPILOG} A flag overrides what a recipe or a
`config.toml` says, and these override the defaults. Numbers must be finite; zero never means "all" or "auto".
To compare runs bit by bit give `--threads`, since its default follows cores and costs, and sums depend on it.

This page is printed by `python -m pipeline.config.flags_page`.
"""


def flags_page() -> str:
    lines = [_OPENING]
    for title, parts in GROUPS.items():
        lines += [f"## {title.capitalize()}", "", "| flag | meaning | values | default |", "| --- | --- | --- | --- |"]
        for f, told in described(*parts):
            flag = f"{flag_name(f.name)} {told.metavar}".rstrip()
            default = told.shown.replace("<", r"\<") if told.metavar else "off"
            lines.append(f"| `{flag}` | {told.doc or told.text} | {told.values} | {default} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(flags_page(), end="")
