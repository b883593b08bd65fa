"""Crews for tests."""

from __future__ import annotations

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
