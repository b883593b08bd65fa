"""Where processes meet: names that are not known, hosts that do not answer, ports that are taken."""

from __future__ import annotations

import importlib
import socket
from collections.abc import Iterator

import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from pipeline.config.environment import Environment
from pipeline.errors import ConfigError, StageFailure
from pipeline.runtime import meeting
from pipeline.runtime.meeting import shared_store


@pytest.fixture
def port() -> Iterator[int]:
    """One where nobody listens, and nobody else will."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def where(rank: int, port: int, **others: object) -> Environment:
    return Environment(rank, 2, rank, 2, host="127.0.0.1", port=port, **others)  # type: ignore[arg-type]


def test_a_port_where_nobody_listens_is_told_by_each_process_that_was_started_alone(port: int) -> None:
    message = (
        rf"^stage 1 \(process 1\) cannot meet the others at MASTER_ADDR=127\.0\.0\.1 MASTER_PORT={port} \(Connectio"
    )
    with pytest.raises(StageFailure, match=message) as caught:
        shared_store(where(1, port), 0.3)
    assert caught.value.rank == 1


def test_where_torchrun_is_gone_the_first_process_of_the_host_tells(port: int) -> None:
    with pytest.raises(StageFailure, match=r"stage 1 .* \(Connection refused\)") as caught:
        shared_store(where(1, port, agent_store=True), 0.3)
    assert caught.value.rank == 0


def test_a_port_that_is_taken_is_told_by_the_process_that_would_host_the_store() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        number = taken.getsockname()[1]
        message = rf"^stage 0 .*MASTER_PORT={number} \(.*EADDRINUSE.*\); give an address and a free port of this host"
        with pytest.raises(StageFailure, match=message):
            shared_store(where(0, number), 5)


def test_a_host_that_is_not_known_is_a_users_mistake(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(meeting, "_PRESENT_S", 0.2)
    for rank in range(2):
        with pytest.raises(
            ConfigError, match=r"^MASTER_ADDR is 127\.0\.0\.1, a host that is not known here \(Name"
        ) as caught:
            shared_store(where(rank, port), 5)
        assert caught.value.rank == 0


def test_a_group_whose_store_forgets_is_refused() -> None:
    """It used to be waited in without an end."""
    fake = importlib.import_module("torch.testing._internal.distributed.fake_pg")  # which makes the kind known
    dist.init_process_group("fake", store=fake.FakeStore(), rank=0, world_size=2)
    try:
        with pytest.raises(ConfigError, match=r"^the process group of 2 processes \(fake\) has no store in which"):
            shared_store(Environment(0, 2), 5)
    finally:
        dist.destroy_process_group()


def test_process_0_hosts_the_store_and_waits_for_nobody(port: int) -> None:
    """`Control.meet` names who does not come."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    store = shared_store(where(0, free), 5)
    assert isinstance(store, TCPStore)
    store.set("key", "value")
    assert shared_store(where(1, free), 5).get("key") == b"value"
    assert shared_store(where(0, free), 5) is store, "another run of this process meets there again"
