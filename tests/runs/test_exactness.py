"""The first promise: which process holds which block is placement, nothing more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.runs.exactness_cases import CASES
from tests.support.processes import spawn

pytestmark = [pytest.mark.runs, pytest.mark.timeout(900)]

Results = dict[int, dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Every case, the processes started once per world size."""
    found: Results = {}
    for world_size in CASES:
        out = tmp_path_factory.mktemp("exact") / f"{world_size}.json"
        ends = spawn(["-m", "tests.runs.exactness_cases", str(out)], world_size, timeout_s=600)
        assert all(end.status == 0 for end in ends), "\n".join(end.stderr for end in ends)
        found[world_size] = json.loads(Path(out).read_text())
    return found


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
