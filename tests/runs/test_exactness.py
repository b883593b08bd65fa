"""The first promise: which process holds which block is placement, nothing more."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.runs.exactness_cases import CASES
from tests.support.processes import started

pytestmark = [pytest.mark.runs, pytest.mark.timeout(900)]

Results = dict[int, dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Every case, the processes started once per world size; those of one process in two at a time."""
    folder = tmp_path_factory.mktemp("exact")
    cases = {world_size: list(of) for world_size, of in CASES.items()}
    half = len(cases[1]) // 2
    halves = [digests_of(1, names, folder) for names in (cases[1][:half], cases[1][half:])]
    with halves[0] as first, halves[1] as second:
        found: Results = {1: first() | second()}
    for world_size in list(cases)[1:]:
        with digests_of(world_size, cases[world_size], folder) as ended:
            found[world_size] = ended()
    return found


@contextmanager
def digests_of(world_size: int, names: list[str], folder: Path) -> Iterator[Callable[[], dict[str, Any]]]:
    """Start these cases; what is yielded waits for their results."""
    out = folder / f"{world_size}-{names[0]}.json"
    with started(["-m", "tests.runs.exactness_cases", str(out), *names], world_size) as team:

        def ended() -> dict[str, Any]:
            ends = team.finish(600)
            assert all(end.status == 0 for end in ends), "\n".join(end.stderr for end in ends)
            results: dict[str, Any] = json.loads(out.read_text())
            return results

        yield ended


def _pairs() -> list[tuple[int, str]]:
    return [
        (world, name)
        for world, cases in CASES.items()
        for name, case in cases.items()
        if (world, name) != (1, case.equals)
    ]


@pytest.mark.parametrize(("world_size", "name"), _pairs())
def test_the_number_of_processes_never_changes_the_bits(results: Results, world_size: int, name: str) -> None:
    expected = results[1][CASES[world_size][name].equals]
    assert results[world_size][name] == expected


def test_one_case_runs_a_thousand_steps(results: Results) -> None:
    assert results[2]["1000 steps"]["steps"] >= 1000


def test_what_must_differ_differs(results: Results) -> None:
    names = [name for name, case in CASES[1].items() if case.equals == name]
    hashes = {name: results[1][name]["state_sha256"] for name in names}
    assert len(set(hashes.values())) == len(hashes), hashes
