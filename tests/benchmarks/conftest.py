"""Crews for tests, and interrupts."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from benchmarks.harness import crew
from tests.support.processes import warm


@pytest.fixture(scope="module")
def forked_crews() -> Iterator[None]:
    """The processes of crews are forks that have imported torch; an experiment starts up to 16 of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crew, "_CONTEXT", warm())
        yield


@pytest.fixture(autouse=True)
def _heeds_interrupts() -> Iterator[None]:
    """Also where whoever started the tests has them ignored, as a shell does that starts them in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
