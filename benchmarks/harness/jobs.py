"""Jobs in processes of their own, one on each core: a failure lets no other begin, an interrupt ends all at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Concatenate, Generic, ParamSpec, TypeVar

from benchmarks.harness.crew import Crew, Member

__all__ = ["Core", "work_off"]

J = TypeVar("J", bound=Hashable)
R = TypeVar("R")
P = ParamSpec("P")
T = TypeVar("T")

_WAIT_S = 60.0
_POLL_S = 0.5


class _Crews:
    """Those at work, which any thread can end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._crews: set[Crew] = set()
        self._aborted = False

    @contextmanager
    def holding(self, crew: Crew) -> Iterator[None]:
        with self._lock:
            self._crews.add(crew)
            if self._aborted:
                crew.abort()
        try:
            yield
        finally:
            with self._lock:
                self._crews.discard(crew)

    def abort(self) -> None:
        """Those that are still to come, too."""
        with self._lock:
            self._aborted = True
            for crew in self._crews:
                crew.abort()


class Core:
    """A core that a job has to itself."""

    def __init__(self, number: int, limit_s: float, crews: _Crews) -> None:
        self._number, self._limit_s, self._crews = number, limit_s, crews

    def call(self, function: Callable[Concatenate[Member, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What a function returns in a process of its own on this core. Raises what `Crew.call` raises."""
        crew = Crew(1, available=[self._number], limit_s=self._limit_s)
        with self._crews.holding(crew), crew:
            return crew.call(function, *args, **kwargs)[0]


class _Work(Generic[J, R]):
    """What the threads share: which jobs are under way, and whether any more shall begin."""

    def __init__(
        self,
        ready: Callable[[Collection[J]], Sequence[J]],
        do: Callable[[J, Core], R],
        done: Callable[[J, R], None],
    ) -> None:
        self._ready, self._do, self._done = ready, do, done
        self._busy: set[J] = set()
        self._stopped = False
        self._changed = threading.Condition()
        self.error: BaseException | None = None  # the first

    def run(self, core: Core) -> None:
        """Do jobs on a core until there are none, or one has failed anywhere."""
        try:
            while (job := self._next()) is not None:
                self._ended(job, self._do(job, core))
        except BaseException as error:
            with self._changed:
                self.error = self.error or error
            self.stop()

    def stop(self) -> None:
        """Begin no other job."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _next(self) -> J | None:
        with self._changed:
            while not self._stopped:
                left = self._ready(self._busy)
                if left:
                    self._busy.add(left[0])
                    return left[0]
                if not self._busy:
                    return None
                self._changed.wait(_WAIT_S)  # what is under way may let others begin
        return None

    def _ended(self, job: J, result: R) -> None:
        with self._changed:
            self._done(job, result)
            self._busy.discard(job)
            self._changed.notify_all()


def work_off(
    cores: Sequence[int],
    limit_s: float,
    *,
    ready: Callable[[Collection[J]], Sequence[J]],
    do: Callable[[J, Core], R],
    done: Callable[[J, R], None],
) -> None:
    """Do jobs until there are none, one at a time on each of `cores`.

    Args:
        cores: to work on.
        limit_s: seconds that a call of a core may take.
        ready: jobs that can begin, the first one first, by those that are under way.
        do: one job, on a core.
        done: learns what came of a job; neither this nor `ready` is called by two threads at once.

    Raises what the first failing job raised, after those under way have ended. An interrupt ends these at once.
    """
    work, crews = _Work(ready, do, done), _Crews()
    with ThreadPoolExecutor(len(cores)) as pool:
        try:
            at_work = {pool.submit(work.run, Core(core, limit_s, crews)) for core in cores}
            while at_work:  # an interrupt that another thread is given is heeded when this one wakes
                at_work = wait(at_work, _POLL_S).not_done
        except BaseException:  # an interrupt, which is for this thread alone
            work.stop()
            crews.abort()
            raise
    if work.error is not None:
        raise work.error
