"""Pairs over real gloo, whose two ends are threads of this process: what arrives, what wakes, what is left."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from unittest.mock import Mock, patch

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from pipeline.errors import StageFailure
from pipeline.network.blocks import canonical
from pipeline.transport.bulk import Bulk
from pipeline.transport.control import Control
from pipeline.transport.links import LinkFactory, Transport
from pipeline.transport.pair import Pair
from tests.support.leftovers import Leftovers
from tests.support.sessions import all_at_once


def pairs(timeout_s: float = 20) -> list[Pair]:
    store = HashStore()
    return all_at_once([lambda rank=rank: Pair(store, rank, timeout_s) for rank in range(2)])  # type: ignore[misc]


@pytest.fixture
def controls() -> Iterator[list[Control]]:
    store = HashStore()
    made = [Control(store, rank, 3, timeout_s=20) for rank in range(3)]
    yield made
    for control in made:
        control.close()


def test_what_is_larger_than_a_piece_arrives_whole() -> None:
    first, second = pairs()
    sent = [torch.randn(5_000_001), torch.zeros(0), torch.arange(3)]  # 20 MB, nothing, a little
    got = [torch.empty_like(x) for x in sent]
    done = first.send([torch.tensor([7])], sent)
    second.receive([header := torch.tensor([0])], got)
    done()
    assert header.item() == 7
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(got, sent, strict=True))


@pytest.mark.parametrize("act", ["receive", "send"])
@pytest.mark.parametrize("ender", [0, 1])
def test_a_transfer_that_has_not_begun_ends_with_its_pair_at_both_ends(act: str, ender: int) -> None:
    """gloo itself would wait for a day."""
    made = pairs()
    told: list[str] = []

    def blocked() -> None:
        try:
            if act == "receive":
                made[0].receive([torch.empty(4)], [])
            else:
                made[0].send([torch.empty(4)], [])()
        except RuntimeError as error:
            told.append(str(error))

    thread = threading.Thread(target=blocked)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    made[ender].end()
    thread.join(20)
    assert len(told) == 1


def test_a_closed_pair_leaves_no_thread_and_no_socket_and_refuses_to_send() -> None:
    pairs()  # what gloo keeps for all groups is there now
    before = Leftovers.now()
    made = pairs()
    assert Leftovers.now() != before
    for pair in made:
        pair.end()
        pair.close()
    assert before.are_all()
    with pytest.raises(RuntimeError, match="Connection closed by this process"):
        made[0].send([torch.empty(4)], [])


def test_two_processes_make_a_link_without_the_third(controls: list[Control]) -> None:
    factories = [LinkFactory(control, Transport.GLOO, torch.device("cpu")) for control in controls]
    one, two = all_at_once([lambda rank=rank: factories[rank].link(1, 2) for rank in (1, 2)])  # type: ignore[misc]
    x = canonical(torch.randn(4, 3, 5, 5))
    done = one.send(torch.tensor([1, 2]), [x])
    two.receive_header(header := torch.empty(2, dtype=torch.int64))
    two.receive([got := torch.empty(4, 5, 5, 3)])
    done()
    assert header.tolist() == [1, 2] and torch.equal(got.permute(0, 3, 1, 2), x)


def test_process_0s_tensors_reach_every_process(controls: list[Control]) -> None:
    states = [{"w": torch.full((2, 3), float(rank)).t(), "n": torch.tensor(rank)} for rank in range(3)]
    bulks = [Bulk(control) for control in controls]
    for _ in range(2):  # the second time over the connections of the first
        all_at_once([lambda rank=rank: bulks[rank].from_first(states[rank]) for rank in range(3)])  # type: ignore[misc]
        assert all(torch.equal(state[name], states[0][name]) for state in states for name in state)
        states[0]["w"] += 1


def test_a_transfer_that_breaks_names_the_peer(controls: list[Control]) -> None:
    broken = Mock(**{"receive.side_effect": RuntimeError("Connection closed by peer [127.0.0.1]:1")})
    with patch.object(Bulk, "_pair", return_value=broken):
        with pytest.raises(StageFailure, match="process 2 died: Connection closed by peer"):
            Bulk(controls[0]).receive(2, [torch.ones(2)])
        broken.receive.side_effect = RuntimeError("a bug")
        with pytest.raises(RuntimeError, match="a bug"):
            Bulk(controls[0]).receive(2, [torch.ones(2)])
