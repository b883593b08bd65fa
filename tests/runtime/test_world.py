"""Processes meet: devices, and the transport that all of them must agree on."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from pipeline.config.environment import Environment
from pipeline.config.schema import TrainConfig
from pipeline.errors import ConfigError, PipelineError, StageFailure
from pipeline.runtime.world import World, connect
from pipeline.transport.control import Control
from pipeline.transport.verdict import known_to_all
from tests.support.sessions import all_at_once


def meet(devices: list[str]) -> list[PipelineError]:
    """Let processes with these devices agree on a transport; the errors they raise."""
    store, errors = HashStore(), list[PipelineError]()

    def act(rank: int, device: str) -> None:
        world = World(Environment(rank, len(devices), rank, len(devices)), TrainConfig(timeout=5), store)
        try:
            world.links(torch.device(device))
        except PipelineError as error:
            errors.append(error)
        finally:
            world.control.close()

    all_at_once([partial(act, *pair) for pair in enumerate(devices)])
    return errors


def test_processes_on_cpus_agree() -> None:
    assert meet(["cpu", "cpu"]) == []


def test_a_mix_of_gpus_and_cpus_is_a_users_mistake_told_to_all() -> None:
    """It used to be reported as a failure under way, with status 1."""
    errors = meet(["cpu", "cuda:0"])
    assert [type(error) for error in errors] == [ConfigError] * 2
    assert all("some processes have a GPU and some have none" in str(error) for error in errors)
    assert all(known_to_all(error) for error in errors)


def test_a_failure_on_leaving_still_ends_the_heartbeat() -> None:
    """Process 0 waits for the others to leave; one of them fails instead."""
    store, before = HashStore(), threading.active_count()
    first, second = (World(Environment(rank, 2, rank, 2), TrainConfig(timeout=5), store) for rank in range(2))
    second.control.fail("stage 1 broke")
    with pytest.raises(StageFailure, match="stage 1 broke"), first:
        pass
    second.control.close()
    assert threading.active_count() == before


def test_a_meeting_that_nobody_comes_to_leaves_no_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    store, before = HashStore(), threading.active_count()
    monkeypatch.setattr("pipeline.runtime.world.place", lambda: Environment(0, 2, 0, 2))
    monkeypatch.setattr("pipeline.runtime.world.shared_store", lambda where, limit_s: store)
    meet = Control.meet
    monkeypatch.setattr(Control, "meet", lambda self, *_: meet(self, 0.1))
    with pytest.raises(StageFailure, match=r"stage 1 \(process 1\) has not come within 0\.1 s"):
        connect(TrainConfig())
    assert threading.active_count() == before


def test_until_costs_are_known_threads_are_an_equal_part_and_never_fewer_than_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)))
    threads = []
    for processes in (1, 2, 4, 9):
        world = World(Environment(0, processes, 0, processes), TrainConfig(), HashStore())
        threads.append(world.threads)
        world.control.close()
    assert threads == [6, 3, 1, 1]
