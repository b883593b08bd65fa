"""A run without processes: every stage a session of its own, their links in memory, stepped in this thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from typing import cast

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from pipeline.data.batches import Batches
from pipeline.errors import ConfigError, StageFailure
from pipeline.learning.packet import Kind, Packet, Position
from pipeline.learning.stage import Stage, Trainable
from pipeline.runtime.feed import Feed
from pipeline.runtime.session import Session, Timetable
from pipeline.runtime.telemetry import Observer
from pipeline.transport.links import Link
from pipeline.transport.messages import StageEpoch, StageStatus
from tests.support.data import library
from tests.support.memory_link import MemoryLinks
from tests.support.sessions import SHAPE, Fleet, all_at_once, settings, state_of


def data() -> Batches:
    """Three steps an epoch."""
    draw = torch.Generator().manual_seed(1)
    images, labels = torch.randn(11, *SHAPE, generator=draw), torch.arange(11) % 3
    return library(TensorDataset(images, labels), batch_size=4)


class Notes(Observer):
    """Writes down what it is told, and copies every snapshot."""

    idle = True

    def __init__(self) -> None:
        self.states: list[StageStatus] = []
        self.epochs: list[tuple[int, Sequence[StageEpoch]]] = []
        self.snapshots: dict[Position, dict[str, Tensor]] = {}
        self.seconds: dict[Position, float] = {}

    def status(self, stages: Sequence[StageStatus]) -> None:
        self.states = list(stages)

    def epoch(self, epoch: int, parts: Sequence[StageEpoch]) -> None:
        self.epochs.append((epoch, parts))

    def snapshot(self, packet: Packet, stages: Sequence[Trainable], seconds: float) -> None:
        self.seconds[packet.at] = seconds
        kept = self.snapshots.setdefault(packet.at, {})
        kept |= {name: x.clone() for stage in stages for name, x in stage.state_dict().items()}


class Halting:
    """A timetable that stops to wait after two packets."""

    def __init__(self, feed: Feed) -> None:
        self.feed, self.go_on = feed, threading.Event()

    def packets(self, start: Position) -> Iterator[Packet]:
        packets = self.feed.packets(start)
        yield from islice(packets, 2)
        self.go_on.wait(20)
        yield from packets


@pytest.fixture
def fleets() -> Iterator[Callable[..., Fleet]]:
    made: list[Fleet] = []

    def make(*args: object, **values: object) -> Fleet:
        made.append(Fleet(*args, **values))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for fleet in made:
        fleet.close()


def stepped(fleet: Fleet, feed: Feed, start: Position = Position()) -> None:  # noqa: B008  frozen
    """Open all sessions, then let one stage after the other work on a packet each, in this thread."""
    with ExitStack() as stack:
        sessions = fleet.sessions()
        all_at_once([session.__enter__ for session in sessions])
        for session in sessions:
            stack.push(session)
        workers = [session.begin(feed if index == 0 else None, start) for index, session in enumerate(sessions)]
        while [worker.step() for worker in workers][-1]:
            pass
        sessions[0].finish()


def run(fleet: Fleet, feed: Timetable, start: Position = Position(), epoch_s: float = 0.0) -> None:  # noqa: B008
    """Run all sessions, each in a thread of its own."""

    def one(index: int, session: Session) -> None:
        with session:
            session.run(feed if index == 0 else None, start, epoch_s)

    all_at_once([lambda i=i, s=s: one(i, s) for i, s in enumerate(fleet.sessions())])  # type: ignore[misc]


def test_stages_stepped_in_one_thread_give_the_bits_of_one_process(fleets: Callable[..., Fleet]) -> None:
    config = settings(epochs=2)
    feed = Feed(data(), config)
    one, three = fleets(config, (6,), 1, dropout=0.3), fleets(config, (2, 1, 3), 3, dropout=0.3)
    run(one, feed)
    before = threading.active_count()
    stepped(three, feed)
    assert state_of(three.stages) == state_of(one.stages)
    assert threading.active_count() == before
    assert [link.closed for link in three.links.made.values()] == [2, 2]


@pytest.mark.parametrize(("loss", "split"), [("predsim", (3, 3)), ("glob+pred", (1, 2, 3)), ("pred-bio", (5, 1))])
def test_a_run_goes_on_from_a_snapshot_in_any_placement(
    loss: str, split: tuple[int, ...], fleets: Callable[..., Fleet]
) -> None:
    """In mid-epoch: taken by one process, loaded by several, and the other way round."""
    config, notes = settings(loss, epochs=3, checkpoint_every=4), Notes()
    feed = Feed(data(), config, notes)
    dropout, way = (0.0, run) if config.backpropagates else (0.3, stepped)
    whole = fleets(config, (6,), 1, notes, dropout)
    run(whole, feed)
    assert sorted(notes.snapshots) == [Position(2, 4), Position(3, 8), Position(4, 9)]
    for at in (Position(2, 4), Position(3, 8)):
        snapshot = notes.snapshots[at]
        resumed = fleets(config, split, len(split), again := Notes(), dropout)
        for stage in resumed.stages:
            stage.load_state_dict(snapshot)
        way(resumed, feed, at)
        assert state_of(resumed.stages) == state_of(whole.stages)
        assert [epoch for epoch, _ in again.epochs] == list(range(at.epoch, 4))
        last = [[score for part in seen.epochs[-1][1] for score in part.train] for seen in (notes, again)]
        assert last[0] == last[1], "errors counted before the snapshot count"
    taken = notes.snapshots[Position(3, 8)]
    assert set(again.snapshots) == {Position(4, 9)}, "the snapshot at the start is not taken again"
    resumed = fleets(config, split, len(split), again := Notes(), dropout)
    way(resumed, feed)
    assert all(torch.equal(again.snapshots[Position(3, 8)][name], taken[name]) for name in taken)


class AskedToEnd:
    """A timetable whose run is asked to end at its first packet of a kind."""

    def __init__(self, feed: Feed, kind: Kind) -> None:
        self.feed, self.kind = feed, kind

    def packets(self, start: Position) -> Iterator[Packet]:
        for packet in self.feed.packets(start):
            if packet.kind is self.kind:
                self.feed.requests.stop.set()
            yield packet


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_ends_within_an_evaluation_goes_on_with_that(processes: int, fleets: Callable[..., Fleet]) -> None:
    config, whole, notes, again = settings(epochs=2), Notes(), Notes(), Notes()
    split = {1: (6,), 2: (2, 4)}[processes]
    undisturbed = fleets(config, split, processes, whole)
    run(undisturbed, Feed(data(), config))
    run(fleets(config, split, processes, notes), AskedToEnd(Feed(data(), config, notes), Kind.EVALUATE))
    assert (notes.epochs, set(notes.snapshots)) == ([], {Position(1, 3)}), "the state before the evaluation"
    assert notes.seconds[Position(1, 3)] > 0
    resumed = fleets(config, split, processes, again)
    for stage in resumed.stages:
        stage.load_state_dict(notes.snapshots[Position(1, 3)])
    run(resumed, Feed(data(), config), Position(1, 3), 100.0)
    assert state_of(resumed.stages) == state_of(undisturbed.stages)
    for (_, ours), (_, theirs) in zip(again.epochs, whole.epochs, strict=True):
        assert [(part.train, part.test) for part in ours] == [(part.train, part.test) for part in theirs]
    seconds = [part.seconds for _, parts in again.epochs for part in parts]
    assert seconds[:processes] == [100.0] * processes, "the training before it counts, the evaluation does not"
    assert all(0 < second < 100 for second in seconds[processes:])


def test_an_epoch_that_is_gone_on_with_has_taken_what_it_took_before_too(fleets: Callable[..., Fleet]) -> None:
    config, notes, again = settings(epochs=1, checkpoint_every=2), Notes(), Notes()
    run(fleets(config, (6,), 1, notes), Feed(data(), config, notes))
    resumed = fleets(config, (6,), 1, again)
    resumed.stages[0].load_state_dict(notes.snapshots[Position(1, 2)])
    run(resumed, Feed(data(), config), Position(1, 2), 100.0)
    assert 0 < notes.seconds[Position(1, 2)] < 100 < again.epochs[0][1][0].seconds < 200


def test_taking_snapshots_never_changes_the_weights(fleets: Callable[..., Fleet]) -> None:
    config = settings(epochs=2)
    often, never = (fleets(config, (2, 4), 2, Notes()) for _ in range(2))
    run(often, Feed(data(), replace(config, checkpoint_every=1), Notes()))
    run(never, Feed(data(), config))
    assert state_of(often.stages) == state_of(never.stages)


def test_an_observer_is_told_of_every_epoch_once_and_of_the_end(fleets: Callable[..., Fleet]) -> None:
    config, notes = settings(epochs=3, eval_every=2), Notes()
    run(fleets(config, (2, 4), 2, notes), Feed(data(), config))
    assert [epoch for epoch, _ in notes.epochs] == [1, 2, 3]
    assert [[part.stage for part in parts] for _, parts in notes.epochs] == [[0, 1]] * 3
    assert [parts[-1].test is None for _, parts in notes.epochs] == [True, False, False]
    assert [(status.phase, status.samples) for status in notes.states] == [("done", 33)] * 2


def test_what_an_observer_raises_ends_the_run_in_all_processes(fleets: Callable[..., Fleet]) -> None:
    class Full(Observer):
        def epoch(self, epoch: int, parts: Sequence[StageEpoch]) -> None:
            raise OSError(28, "No space left on device")

    config = settings(epochs=1)
    with pytest.raises(StageFailure, match=r"cannot read or write: \[Errno 28\] No space left"):
        run(fleets(config, (2, 4), 2, Full()), Feed(data(), config))


class Faulty:
    """A trainable that is a stage, but for one call that fails."""

    def __init__(self, stage: Stage, error: BaseException, at: int) -> None:
        self.__dict__.update(vars(stage))
        self._stage, self._error, self._at = stage, error, at

    def __getattr__(self, name: str) -> object:
        return getattr(self._stage, name)

    def step(self, packet: Packet) -> Packet:
        if packet.at.step == self._at:
            raise self._error
        return self._stage.step(packet)


def failures(sessions: Sequence[Session], feed: Timetable) -> list[BaseException]:
    """What every process raises."""

    def one(index: int, session: Session) -> BaseException:
        with pytest.raises(BaseException) as caught, session:  # noqa: PT011  the caller looks at it
            session.run(feed if index == 0 else None)
        return caught.value

    return all_at_once([lambda i=i, s=s: one(i, s) for i, s in enumerate(sessions)])  # type: ignore[misc]


def test_after_a_failure_nothing_is_left_and_the_next_session_works(fleets: Callable[..., Fleet]) -> None:
    config = settings(epochs=2)
    feed, fleet, undisturbed = Feed(data(), config), fleets(config, (2, 4), 2), fleets(config, (6,), 1)
    before = threading.active_count()
    faulty = cast(Trainable, Faulty(fleet.stages[1], ValueError("the fuse has blown"), at=1))
    first, second = failures(fleet.sessions([fleet.stages[0], faulty]), feed)
    assert isinstance(first, StageFailure) and isinstance(second, ValueError)
    assert str(first) == "stage 1 (process 1) failed: ValueError: the fuse has blown"
    assert threading.active_count() == before
    assert all(link.closed == 2 for link in fleet.links.made.values())
    for control in fleet.controls:
        control.advance()
    fleet.links.made.clear()
    fleet.stages = fleets(config, (2, 4), 2).stages
    run(fleet, feed)
    run(undisturbed, feed)
    assert state_of(fleet.stages) == state_of(undisturbed.stages)


class Exploding(Faulty):
    """A stage whose weights become infinite before a step."""

    def step(self, packet: Packet) -> Packet:
        if packet.at.step == self._at:
            next(self._stage.blocks[2].block.parameters()).data.fill_(torch.inf)
        return self._stage.step(packet)


@pytest.mark.parametrize("processes", [1, 2])
def test_divergence_is_one_failure_in_all_processes_and_keeps_the_epochs_before(
    processes: int, fleets: Callable[..., Fleet]
) -> None:
    notes = Notes()
    fleet = fleets(settings(epochs=3), (2, 4), processes, notes)
    exploding = cast(Trainable, Exploding(fleet.stages[1], ValueError(), at=4))
    found = failures(fleet.sessions([fleet.stages[0], exploding]), Feed(data(), fleet.config))
    assert [type(error) for error in found] == [StageFailure] * processes
    (message,) = {str(error) for error in found}
    assert "the loss of block 4 (" in message
    assert ") became nan or infinite in epoch 2, at step 4 of the run; lower --lr" in message
    assert [epoch for epoch, _ in notes.epochs] == [1]


@pytest.mark.parametrize("processes", [1, 2])
def test_what_has_diverged_is_no_snapshot(processes: int, fleets: Callable[..., Fleet]) -> None:
    """Within a long epoch those used to take the places of all that had not."""
    notes = Notes()
    fleet = fleets(settings(epochs=2, checkpoint_every=1), (2, 4), processes, notes)
    exploding = cast(Trainable, Exploding(fleet.stages[1], ValueError(), at=1))
    feed = Feed(data(), fleet.config, notes)
    (message,) = {str(error) for error in failures(fleet.sessions([fleet.stages[0], exploding]), feed)}
    assert "the loss of block 4 (" in message and "in epoch 1, at step 1 of the run; lower --lr" in message
    whole = [at for at, state in notes.snapshots.items() if any(name.startswith("4.") for name in state)]
    assert whole == [Position(1, 1)]


@pytest.mark.parametrize("victim", [0, 1])
def test_another_thread_may_abort_a_run(victim: int, fleets: Callable[..., Fleet]) -> None:
    config = settings(epochs=9)
    fleet, feed = fleets(config, (2, 4), 2), Halting(Feed(data(), config))
    sessions = fleet.sessions()

    def abort() -> None:
        while any(control.at.step < 1 for control in fleet.controls):
            time.sleep(0.01)
        sessions[victim].abort()
        feed.go_on.set()

    thread = threading.Thread(target=abort)
    thread.start()
    found = failures(sessions, feed)
    thread.join()
    assert {str(error) for error in found} == {f"stage {victim} (process {victim}) was aborted"}


class Torn(MemoryLinks):
    """The way back of a link cannot be made."""

    def link(self, source: int, target: int) -> Link:
        if source > target:
            raise RuntimeError("Connection closed by peer [127.0.0.1]:1")
        return super().link(source, target)


def test_a_session_that_cannot_be_opened_leaves_no_thread(
    fleets: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of its queues was there already when the next one failed."""
    monkeypatch.setattr("pipeline.transport.control._REPORT_S", 0.1)
    fleet = fleets(settings("glob"), (2, 4), 2)
    fleet.links, before = Torn(), threading.active_count()
    found = failures(fleet.sessions(), Feed(data(), fleet.config))
    assert all(isinstance(error, StageFailure) for error in found)
    assert threading.active_count() == before


def test_neighbours_that_do_not_fit_are_refused_before_any_queue(fleets: Callable[..., Fleet]) -> None:
    config = settings()
    fleet, other = fleets(config, (2, 4), 2), fleets(config, (3, 3), 2)
    found = failures(fleet.sessions([fleet.stages[0], other.stages[1]]), Feed(data(), config))
    assert [type(error) for error in found] == [ConfigError] * 2
    assert "stage 0 sends x [" in str(found[0]) and not fleet.links.made
