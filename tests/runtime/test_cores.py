"""How many cores a process may keep busy, who shares them with whom, and who keeps to which."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.learning.cores import Host
from pipeline.runtime.cores import Seat, hosts_of, own_cores, seat, staying_on


def system(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": cgroup, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
    return root


@pytest.mark.parametrize(
    ("cgroup", "files", "count"),
    [
        ("0::/\n", {}, 6),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000\n"}, 6),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),  # half a core is one thread
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "1600000 100000\n"}, 6),
        ("0::/a/b\n", {"sys/fs/cgroup/a/cpu.max": "300000 100000", "sys/fs/cgroup/a/b/cpu.max": "max 100000"}, 3),
        (
            "4:memory:/x\n3:cpu,cpuacct:/job\n",
            {"sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "400000", "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000"},
            4,
        ),
        (
            "3:cpu:/job\n",
            {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"},
            6,
        ),
        (
            "3:cpu,cpuacct:/job\n",
            {
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000",
            },
            2,
        ),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "nonsense"}, 6),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "max\n"}, 6),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "100000 0\n"}, 6),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "100000 -1\n"}, 6),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": f"{10**400} 1\n"}, 6),
        ("0::/k\udce4se\n", {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),  # a name that is no UTF-8
        ("nonsense\n\n0:\n0::/\n", {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ("0::/a:b\n", {"sys/fs/cgroup/a:b/cpu.max": "200000 100000\n"}, 2),
    ],
)
def test_a_containers_quota_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cgroup: str, files: dict[str, str], count: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)))
    assert seat(system(tmp_path, cgroup, files)).count == count


def test_a_system_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    here = seat(tmp_path)
    assert here.count == len(here.mask) == len(os.sched_getaffinity(0))


def seats(*masks: tuple[int, ...], host: str = "a", quota: int = 99) -> list[Seat]:
    return [Seat(host, mask, min(len(mask), quota)) for mask in masks]


WHOLE = (0, 1, 2, 3)


def test_processes_of_a_host_share_its_cores_and_those_pinned_apart_do_not() -> None:
    assert hosts_of(seats(WHOLE, WHOLE)) == [Host(2, 4)]
    assert hosts_of(seats((0, 1), (2, 3))) == [Host(1, 2), Host(1, 2)]
    assert hosts_of([*seats(WHOLE, WHOLE), *seats((4, 5), host="b")]) == [Host(2, 4), Host(1, 2)]
    assert hosts_of(seats(WHOLE, WHOLE, quota=3)) == [Host(2, 3)]


@pytest.mark.parametrize(
    ("places", "threads", "kept"),
    [
        (seats(WHOLE, WHOLE), [3, 1], [(0, 1, 2), (3,)]),
        ([*seats(WHOLE, host="b"), *seats(WHOLE, WHOLE)], [4, 1, 3], [WHOLE, (0,), (1, 2, 3)]),
        (seats((0, 1), (2, 3)), [2, 2], [(0, 1), (2, 3)]),  # pinned by somebody else
        (seats((0,), (0,)), [1, 1], [(0,), (0,)]),  # more processes than cores
        (seats(WHOLE, WHOLE, quota=2), [1, 1], [WHOLE, WHOLE]),  # which two are free is not ours to say
    ],
)
def test_a_process_keeps_to_as_many_cores_as_it_has_threads(
    places: list[Seat], threads: list[int], kept: list[tuple[int, ...]]
) -> None:
    assert [own_cores(places, threads, rank) for rank in range(len(places))] == kept


def test_who_stays_on_some_cores_gets_the_others_back() -> None:
    before = os.sched_getaffinity(0)
    with suppress(RuntimeError), staying_on([min(before)]):
        assert os.sched_getaffinity(0) == {min(before)}
        raise RuntimeError
    assert os.sched_getaffinity(0) == before
