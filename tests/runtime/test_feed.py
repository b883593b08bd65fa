"""The timetable, against its drawing."""

from __future__ import annotations

from itertools import chain, pairwise, repeat

import pytest
import torch

from pipeline.config.schedule import Schedule
from pipeline.data.batches import Batches
from pipeline.learning.packet import Kind, Packet, Position
from pipeline.runtime.feed import Feed
from pipeline.runtime.requests import Requests
from tests.support.data import library, numbered


@pytest.fixture(scope="module")
def batches() -> Batches:
    """Three steps an epoch, two test batches."""
    return library(numbered(11), numbered(6), batch_size=4)


class Idle:
    """Has room for a snapshot or not, asked time after time."""

    def __init__(self, *answers: bool) -> None:
        self._answers = chain(answers, repeat(not answers))

    @property
    def idle(self) -> bool:
        return next(self._answers)


def drawn(packets: list[Packet]) -> list[str]:
    letters = {Kind.TRAIN: "t", Kind.EVALUATE: "e", Kind.SNAPSHOT: "s", Kind.END_OF_EPOCH: "|", Kind.STOP: "."}
    return [f"{letters[packet.kind]}{packet.at.epoch},{packet.at.step}" for packet in packets]


def test_an_epoch_trains_is_evaluated_and_ends(batches: Batches) -> None:
    packets = list(Feed(batches, Schedule(epochs=2)).packets())
    assert drawn(packets) == [
        *("t1,0", "t1,1", "t1,2", "e1,3", "e1,3", "|1,3"),
        *("t2,3", "t2,4", "t2,5", "e2,6", "e2,6", "|2,6", ".3,6"),
    ]
    assert [packet.batch for packet in packets[:6]] == [4, 4, 3, 4, 2, 0]


def test_snapshots_come_after_every_so_many_steps_of_the_run(batches: Batches) -> None:
    packets = list(Feed(batches, Schedule(epochs=2, eval_every=2, checkpoint_every=2), Idle()).packets())
    assert drawn(packets) == [
        *("t1,0", "t1,1", "s1,2", "t1,2", "|1,3"),
        *("t2,3", "s2,4", "t2,4", "t2,5", "s2,6", "e2,6", "e2,6", "|2,6", "s3,6", ".3,6"),
    ]


def test_snapshots_after_every_epoch_are_of_the_next_ones_start(batches: Batches) -> None:
    packets = list(Feed(batches, Schedule(epochs=2, eval_every=2), Idle()).packets())
    assert drawn(packets) == [
        *("t1,0", "t1,1", "t1,2", "|1,3", "s2,3"),
        *("t2,3", "t2,4", "t2,5", "e2,6", "e2,6", "|2,6", "s3,6", ".3,6"),
    ]


def test_a_snapshot_waits_for_room_and_the_last_one_does_not(batches: Batches) -> None:
    feed = Feed(batches, Schedule(epochs=2, eval_every=9, checkpoint_every=2), Idle(False, False, True))
    assert [text for text in drawn(list(feed.packets())) if text[0] in "s"] == ["s2,3", "s3,6"]


def test_a_save_asked_for_comes_after_the_present_step(batches: Batches) -> None:
    requests = Requests()
    feed = Feed(batches, Schedule(epochs=2, eval_every=9, checkpoint_every=99), Idle(), requests)
    packets = feed.packets()
    next(packets)
    requests.save.set()
    assert drawn(list(packets))[:3] == ["s1,1", "t1,1", "t1,2"]
    assert not requests.save.is_set()


@pytest.mark.parametrize(
    ("done", "rest"),
    [
        (["t1,0"], ["s1,1", ".1,1"]),
        (["t1,0", "t1,1", "t1,2"], ["s1,3", ".1,3"]),
        (["t1,0", "t1,1", "t1,2", "e1,3"], ["s1,3", ".1,3"]),
        (["t1,0", "t1,1", "t1,2", "e1,3", "e1,3"], ["s1,3", ".1,3"]),
        (["t1,0", "t1,1", "t1,2", "e1,3", "e1,3", "|1,3"], ["s2,3", ".2,3"]),
        (["t1,0", "t1,1", "t1,2", "e1,3", "e1,3", "|1,3", "s2,3"], [".2,3"]),
    ],
)
def test_a_stop_asked_for_saves_and_ends_after_the_packet_under_way(
    batches: Batches, done: list[str], rest: list[str]
) -> None:
    requests = Requests()
    for saves in (Idle(), None):
        seen = [text for text in done if saves is not None or text[0] != "s"]
        packets = Feed(batches, Schedule(epochs=2), saves, requests).packets()
        requests.stop.clear()
        assert drawn([next(packets) for _ in seen]) == seen
        requests.stop.set()
        assert drawn(list(packets)) == [text for text in rest if saves is not None or text[0] != "s"]


def test_a_stop_asked_for_once_all_is_done_is_too_late(batches: Batches) -> None:
    requests = Requests()
    packets = Feed(batches, Schedule(epochs=1), requests=requests).packets()
    assert drawn([next(packets) for _ in range(6)])[-1] == "|1,3"
    requests.stop.set()
    assert drawn(list(packets)) == [".2,3"]


def test_positions_never_go_back(batches: Batches) -> None:
    packets = list(Feed(batches, Schedule(epochs=3, checkpoint_every=1), Idle()).packets())
    assert all(first.at <= second.at for first, second in pairwise(packets))


@pytest.mark.parametrize("at", [Position(1, 1), Position(1, 3), Position(2, 3), Position(2, 5), Position(3, 9)])
def test_what_is_fed_from_a_position_is_the_tail_of_the_whole(batches: Batches, at: Position) -> None:
    feed = Feed(batches, Schedule(epochs=3))
    whole, tail = list(feed.packets()), list(feed.packets(at))
    assert drawn(tail) == drawn(whole)[-len(tail) :]
    assert tail[0].at == at
    for ours, theirs in zip(tail, whole[-len(tail) :], strict=True):
        assert set(ours.tensors) == set(theirs.tensors)
        assert all(torch.equal(ours.tensors[name], theirs.tensors[name]) for name in ours.tensors)
