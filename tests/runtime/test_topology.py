"""Stages and processes."""

from __future__ import annotations

from pipeline.runtime.topology import Topology


def test_several_processes_run_a_stage_each() -> None:
    topology = Topology.over((2, 1, 3), world_size=3)
    assert topology.stages == 3
    assert [topology.stages_of(rank) for rank in range(3)] == [[0], [1], [2]]
    assert topology.owners() == {0: 0, 1: 0, 2: 1, 3: 2, 4: 2, 5: 2}
    assert [topology.neighbours(rank) for rank in range(3)] == [(None, 1), (0, 2), (1, None)]


def test_one_process_runs_all_of_them_and_has_no_neighbours() -> None:
    topology = Topology.over((2, 1, 3), world_size=1)
    assert topology.stages_of(0) == [0, 1, 2]
    assert set(topology.owners().values()) == {0}
    assert topology.neighbours(0) == (None, None)
