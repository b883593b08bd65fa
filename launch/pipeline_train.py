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
from pipeline.runtime.siblings import death
from pipeline.text import one_line, printable_lines

if TYPE_CHECKING:
    from pipeline.runtime.requests import Requests

__all__ = ["main"]

_HEAD_START_S = 0.5  # how long the others get to find the same mistake before the first exit ends them
_SAVE_S = 25.0  # for the last step and its checkpoint after a signal: torchrun kills after 30
_GRACE_S = 10.0  # how long a process waits for torchrun to end it after another one has reported the failure
_LOOK_S = 1.0  # within which the death of another process is known, after which torchrun ends this one
_ORDER_S = 2.0  # for the thread that trains to end in order once a failure is known


def main(arguments: Sequence[str], where: Environment) -> int:
    """Parse, call, and return the exit status; failures leave by way of `_End`."""
    end = _End(where)
    try:
        command = _parse(arguments, where)
        if command is not None:
            where.check()
            command.config.check_world(where.world_size)
            _act(command, where, end)
        return 0
    except PipelineError as error:
        end.leave(error)
    except Exception:
        traceback.print_exc()
        _exit(1)


def _parse(arguments: Sequence[str], where: Environment) -> Command | None:
    """The command, or None where `--help` was all; only process 0 prints the help."""
    quiet = contextlib.redirect_stdout(io.StringIO()) if where.rank else contextlib.nullcontext()
    with quiet, contextlib.suppress(SystemExit):
        return parse(arguments, where.world_size)
    return None


def _act(command: Command, where: Environment, end: _End) -> None:
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
                requests=_listening(where, end),
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


def _listening(where: Environment, end: _End) -> Requests:
    """Requests that signals make: to end after a save, or to save alone, as schedulers ask before their limit."""
    from pipeline.runtime.requests import Requests

    requests = Requests()

    def stop(number: int, _: FrameType | None) -> None:
        end.asked.set()
        again = requests.stop.is_set() and number == signal.SIGINT and where.world_size == 1
        if again or not requests.heard.is_set():
            # torchrun ends the others as soon as one has died, and one of them is to say so.
            found = _death(number, where)
            if number == signal.SIGTERM and where.world_size > 1 and requests.failed.wait(_LOOK_S):
                raise requests.failures[0]
            _raise(number, found)
        if not requests.stop.is_set():  # torchrun passes on what the terminal has sent already
            requests.stop.set()
            limit = threading.Timer(_SAVE_S, os._exit, (1,))
            limit.daemon = True
            limit.start()

    def tell() -> None:
        """Where the thread that trains does not come to it, such as in a transfer that cannot be ended."""
        requests.failed.wait()
        time.sleep(_ORDER_S)
        end.leave(requests.failures[0])

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    signal.signal(signal.SIGUSR1, lambda *_: requests.save.set())
    if where.world_size > 1:
        threading.Thread(target=tell, name="last words", daemon=True).start()
    return requests


def _answer(text: str) -> None:
    """On standard output, if anybody listens."""
    with contextlib.suppress(OSError, ValueError):
        print(printable_lines(text, getattr(sys.stdout, "encoding", None) or "ascii"), flush=True)


class _End:
    """How a process leaves after a failure; whichever of its threads comes first leads it out."""

    def __init__(self, where: Environment) -> None:
        self._where, self._first = where, threading.Lock()
        self.asked = threading.Event()  # by whoever ends all processes

    def leave(self, error: PipelineError) -> NoReturn:
        """Print the one line from the process the error came from, which exits first; the others wait to be ended."""
        where, status = self._where, 2 if isinstance(error, ConfigError | DataError) else 1
        if not self._first.acquire(blocking=False):
            time.sleep(_GRACE_S + _HEAD_START_S)
            _exit(status)
        tells = error.rank == where.rank
        if threading.current_thread() is threading.main_thread():
            # Nothing comes between the teller and its line.
            signal.signal(signal.SIGTERM, signal.SIG_IGN if tells else lambda *_: os._exit(status))
        if tells:
            _tell(f"error: {error}")
        if where.world_size > 1 and not tells and not isinstance(error, Interrupted):
            self.asked.wait(_GRACE_S)
        if where.world_size > 1:
            time.sleep(_HEAD_START_S if tells else 2 * _HEAD_START_S)
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
    _raise(number, _death(number, environment()))


def _raise(number: int, found: tuple[int, int] | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.Signals(number).name, found)


def _death(number: int, where: Environment) -> tuple[int, int] | None:
    """The process for whose death torchrun ends this one, and who tells of it; now, while the others are here."""
    return death(where) if number == signal.SIGTERM and where.world_size > 1 else None


def _interrupted(interrupt: KeyboardInterrupt, where: Environment) -> NoReturn:
    """What was to be ended has not begun."""
    name, found = interrupt.args
    by_torchrun = name == "SIGTERM" and where.world_size > 1
    if found is not None and found[1] == where.rank:
        gone = f"stage {found[0]} (process {found[0]})"
        _tell(f"error: {gone} died: its process is gone; see its output above, then start the run anew")
    elif where.rank == 0 and not by_torchrun:
        _tell(f"interrupted ({name}); the run was ended before its last epoch")
    if by_torchrun:
        time.sleep(_LOOK_S)  # whoever is gone would seem to have died to those who look late
    _exit(1)


if __name__ == "__main__":
    _open_standard_streams()
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    place = environment()
    try:
        _exit(main(sys.argv[1:], place))
    except KeyboardInterrupt as interrupt:
        _interrupted(interrupt, place)
