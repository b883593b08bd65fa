"""Train a network with local error signals, one stage a process.

    torchrun --nproc_per_node=4 launch/pipeline_train.py [flags]     4 stages in 4 processes
    python launch/pipeline_train.py [flags]                          all stages in this process

Exit status: 0 done; 2 a mistake found before any training; 1 failed under way.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.config.cli import Command, parse
from pipeline.config.environment import Environment, environment
from pipeline.config.measured import read_measured
from pipeline.config.recipes import list_recipes
from pipeline.config.toml import to_toml
from pipeline.errors import PipelineError
from pipeline.runtime.ending import Ending, leave_now, open_standard_streams
from pipeline.text import printable_lines

__all__ = ["main"]

_MEASURED = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "paper"


def main(arguments: Sequence[str], where: Environment, ending: Ending) -> int:
    """Parse, call, and return the exit status; failures and interrupts leave by way of `ending`."""
    try:
        command = _parse(arguments, where)
        if command is not None:
            where.check()
            command.config.check_world(where.world_size)
            _act(command, where, ending)
        return 0
    except PipelineError as error:
        ending.leave(error)
    except (Exception, KeyboardInterrupt):
        ending.break_off()


def _parse(arguments: Sequence[str], where: Environment) -> Command | None:
    """The command, or None where `--help` was all; only process 0 prints the help."""
    quiet = contextlib.redirect_stdout(io.StringIO()) if where.rank else contextlib.nullcontext()
    with quiet, contextlib.suppress(SystemExit):
        return parse(arguments, where.world_size)
    return None


def _act(command: Command, where: Environment, ending: Ending) -> None:
    """Train, or let process 0 answer; torch is imported no earlier than here."""
    config = command.config
    if not (command.list_recipes or command.print_config or command.dry_run):
        from pipeline.report.run_folder import default_folder
        from pipeline.runtime.requests import Requests
        from pipeline.training import Options, run

        requests = Requests()
        ending.heed(requests)
        output = command.output or default_folder(config.data.dataset, config.model.model, config.train.loss)
        run(
            config,
            Options(
                output,
                command.overwrite,
                command.trace,
                command.resume,
                command.init_from,
                renames=command.output is None,
                show=True,
                quiet=command.quiet,
                requests=requests,
            ),
        )
    elif where.rank > 0:
        return
    elif command.list_recipes:
        _answer(list_recipes(read_measured(_MEASURED)))
    elif command.print_config:
        _answer(to_toml(config).rstrip())
    else:
        from pipeline.report.dry_run import dry_run

        dry_run(config, where.world_size)


def _answer(text: str) -> None:
    """On standard output, if anybody listens."""
    with contextlib.suppress(OSError, ValueError):
        print(printable_lines(text, getattr(sys.stdout, "encoding", None) or "ascii"), flush=True)


if __name__ == "__main__":
    open_standard_streams()
    # Of a connection that breaks torch logs its own stack, beside the line that says what has happened.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    place = environment()
    leave_now(main(sys.argv[1:], place, Ending(place)))
