"""Train a network with local error signals, one stage a process.

    torchrun --nproc_per_node=4 launch/pipeline_train.py [flags]     4 stages in 4 processes
    python launch/pipeline_train.py [flags]                          all stages in this process

Exit status: 0 done; 2 a mistake found before any training; 1 failed under way.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from pipeline.config.cli import Command, parse
from pipeline.config.environment import Environment, environment
from pipeline.config.recipes import RECIPES
from pipeline.config.toml import to_toml
from pipeline.errors import ConfigError, DataError, Interrupted, PipelineError
from pipeline.text import one_line, printable_lines

if TYPE_CHECKING:
    from pipeline.runtime.requests import Requests

__all__ = ["main"]

_HEAD_START_S = 0.5  # how long the others get to find the same mistake before the first exit ends them
_SAVE_S = 25.0  # for the last step and its checkpoint after a signal: torchrun kills after 30
_GRACE_S = 10.0  # how long a process waits for torchrun to end it after another one has reported the failure


def main(arguments: Sequence[str], where: Environment) -> int:
    """Parse, call, and return the exit status; failures leave by way of `_leave`."""
    try:
        command = _parse(arguments, where)
        if command is not None:
            where.check()
            command.config.check_world(where.world_size)
            _act(command, where)
        return 0
    except PipelineError as error:
        _leave(error, where)
    except Exception:
        traceback.print_exc()
        _exit(1)


def _parse(arguments: Sequence[str], where: Environment) -> Command | None:
    """The command, or None where `--help` was all; only process 0 prints the help."""
    quiet = contextlib.redirect_stdout(io.StringIO()) if where.rank else contextlib.nullcontext()
    with quiet, contextlib.suppress(SystemExit):
        return parse(arguments, where.world_size)
    return None


def _act(command: Command, where: Environment) -> None:
    """Train, or let process 0 answer; torch is imported no earlier than here."""
    config = command.config
    if not (command.list_recipes or command.print_config or command.dry_run):
        from pipeline.report.run_folder import default_folder
        from pipeline.training import Options, run

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
                requests=_listening(where),
            ),
        )
    elif where.rank > 0:
        return
    elif command.list_recipes:
        _answer("\n".join(RECIPES))
    elif command.print_config:
        _answer(to_toml(config).rstrip())
    else:
        from pipeline.report.dry_run import dry_run

        dry_run(config, where.world_size)


def _listening(where: Environment) -> Requests:
    """Requests that signals make: to end after a save, or to save alone, as schedulers ask before their limit."""
    from pipeline.runtime.requests import Requests

    requests = Requests()

    def stop(number: int, frame: FrameType | None) -> None:
        again = requests.stop.is_set() and number == signal.SIGINT and where.world_size == 1
        if again or not requests.heard.is_set():
            _interrupt(number, frame)
        if not requests.stop.is_set():  # torchrun passes on what the terminal has sent already
            requests.stop.set()
            limit = threading.Timer(_SAVE_S, os._exit, (1,))
            limit.daemon = True
            limit.start()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    signal.signal(signal.SIGUSR1, lambda *_: requests.save.set())
    return requests


def _answer(text: str) -> None:
    """On standard output, if anybody listens."""
    with contextlib.suppress(OSError, ValueError):
        print(printable_lines(text, getattr(sys.stdout, "encoding", None) or "ascii"), flush=True)


def _leave(error: PipelineError, where: Environment) -> NoReturn:
    """Print the one line from the process the error came from, which exits first; the others wait to be ended."""
    status = 2 if isinstance(error, ConfigError | DataError) else 1
    signal.signal(signal.SIGTERM, lambda *_: os._exit(status))
    if error.rank == where.rank:
        _tell(f"error: {error}")
    if where.world_size > 1:
        grace_s = 2 * _HEAD_START_S if isinstance(error, Interrupted) else _GRACE_S  # torchrun is ending already
        time.sleep(_HEAD_START_S if error.rank == where.rank else grace_s)
    _exit(status)


def _tell(line: str) -> None:
    """One line on standard error, safe for a terminal, if anybody listens."""
    with contextlib.suppress(OSError, ValueError):
        print(one_line(line, getattr(sys.stderr, "encoding", None) or "ascii"), file=sys.stderr, flush=True)


def _exit(status: int) -> NoReturn:
    """Leave without waiting for threads that may be blocked in a transfer to a process that is gone."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or nobody reads it any more
            stream.flush()
    os._exit(status)


def _open_standard_streams() -> None:
    """Where one is closed the next file to be opened would get its number, and what is printed."""
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(opened)


def _interrupt(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.Signals(number).name)


if __name__ == "__main__":
    _open_standard_streams()
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    place = environment()
    try:
        _exit(main(sys.argv[1:], place))
    except KeyboardInterrupt as interrupt:
        # torchrun ends its processes with SIGTERM after a failure, which was reported.
        if place.rank == 0 and (str(interrupt) == "SIGINT" or place.world_size == 1):
            _tell(f"interrupted ({interrupt}); the run was ended before its last epoch")
        _exit(1)
