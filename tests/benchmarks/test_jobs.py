"""Jobs on cores of their own: each is done once, a failure lets no other begin, an interrupt ends all at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Collection

import pytest

from benchmarks.harness.crew import Crew, Member
from benchmarks.harness.jobs import Core, work_off
from pipeline.errors import DataError


class Jobs:
    """So many numbers, and what came of them."""

    def __init__(self, count: int) -> None:
        self.begun, self.found, self.count = list[int](), dict[int, int](), count

    def ready(self, busy: Collection[int]) -> list[int]:
        return [job for job in range(self.count) if job not in self.found and job not in busy]

    def done(self, job: int, result: int) -> None:
        self.found[job] = result


def squared(member: Member, value: int) -> int:
    return value * value


def endless(member: Member) -> int:
    time.sleep(3600)  # far beyond the limit of a test
    return 0


@pytest.mark.bench
@pytest.mark.usefixtures("forked_crews")
def test_every_job_is_done_once_in_a_process_on_its_core() -> None:
    jobs = Jobs(3)

    def do(job: int, core: Core) -> int:
        jobs.begun.append(job)
        return core.call(squared, job)

    work_off([0, 0], 60, ready=jobs.ready, do=do, done=jobs.done)
    assert sorted(jobs.begun) == [0, 1, 2] and jobs.found == {0: 0, 1: 1, 2: 4}


def test_a_failure_lets_no_other_job_begin() -> None:
    jobs, failed = Jobs(9), threading.Event()

    def do(job: int, core: Core) -> int:
        jobs.begun.append(job)
        if job == 1:
            failed.set()
            raise DataError("job 1 is wrong")
        assert failed.wait(60)
        time.sleep(0.1)
        return job

    with pytest.raises(DataError, match="job 1 is wrong"):
        work_off([0, 0], 60, ready=jobs.ready, do=do, done=jobs.done)
    assert sorted(jobs.begun) == [0, 1] and jobs.found == {0: 0}, "what was under way has ended"


def test_an_interrupt_that_another_thread_is_given_is_heeded() -> None:
    """The system may pick any thread for a signal; the one that waits for the jobs is not woken then."""
    jobs = Jobs(9)

    def do(job: int, core: Core) -> int:
        jobs.begun.append(job)
        time.sleep(0.2)  # until that one waits
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        time.sleep(2)
        return job

    with pytest.raises(KeyboardInterrupt):
        work_off([0], 60, ready=jobs.ready, do=do, done=jobs.done)
    assert jobs.begun == [0], "no other was begun"


@pytest.mark.bench
@pytest.mark.usefixtures("forked_crews")
def test_an_interrupt_ends_jobs_under_way_and_begins_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, call = Jobs(9), Crew.call

    def told(self: Crew, *args: object, **kwargs: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)  # as a terminal does, while the process is at work
        return call(self, *args, **kwargs)  # type: ignore[arg-type]

    def do(job: int, core: Core) -> int:
        jobs.begun.append(job)
        return core.call(endless)

    monkeypatch.setattr(Crew, "call", told)
    with pytest.raises(KeyboardInterrupt):
        work_off([0], 3600, ready=jobs.ready, do=do, done=jobs.done)
    assert jobs.begun == [0] and not jobs.found
