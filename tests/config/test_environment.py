"""Where a launcher put this process: torchrun's variables, odd and missing ones, and those of srun and mpirun."""

from __future__ import annotations

import pytest

from pipeline.config.environment import Environment, environment, environment_of_group
from pipeline.errors import ConfigError

TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "3",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "there",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "TORCHELASTIC_MAX_RESTARTS": "3",
}
BY_HAND = {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "there", "MASTER_PORT": "29500"}
MEETING = {"MASTER_ADDR": "there", "MASTER_PORT": "29500"}
ALONE = Environment()


def test_torchrun_says_everything() -> None:
    assert environment(TORCHRUN) == Environment(1, 3, 1, 2, "there", 29500, True, 2, True)


def test_by_hand_the_place_on_a_host_may_be_left_out() -> None:
    assert environment(BY_HAND) == Environment(1, 3, None, None, "there", 29500)
    assert environment(BY_HAND | {"LOCAL_RANK": "0"}).local_rank == 0


@pytest.mark.parametrize("host", ["::1", "fe80::1%eth0", "10.0.0.1", "node-3.local", "worker_0"])
def test_addresses_and_names_of_hosts_are_taken(host: str) -> None:
    assert environment(BY_HAND | {"MASTER_ADDR": host}).host == host


def test_a_process_of_several_may_be_told_to_train_alone() -> None:
    where = environment(TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"})
    assert (where.rank, where.world_size, where.local_rank, where.local_world_size) == (0, 1, 1, None)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": " "},
        {"WORLD_SIZE": "1"},
        {"WORLD_SIZE": "1", "RANK": "0"},
        MEETING,
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"},  # a batch script
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_STEP_ID": "batch"},
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967290"},  # the shell of an allocation
        {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0"},
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        {"PMI_SIZE": "2"},
        MEETING | {"TORCHELASTIC_USE_AGENT_STORE": "True"},  # left by an outer launch
    ],
)
def test_this_is_the_only_process(variables: dict[str, str]) -> None:
    assert environment(variables) == ALONE


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "1"}, "RANK is 1, but WORLD_SIZE is not set; unset RANK to train in one process, or start several"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK is 0, but WORLD_SIZE is not set; unset LOCAL_RANK to train in one process"),
        ({"RANK": "0", "WORLD_SIZE": "3"}, "WORLD_SIZE is 3, but MASTER_ADDR is not set; start all processes with"),
        (BY_HAND | {"MASTER_PORT": ""}, "WORLD_SIZE is 3, but MASTER_PORT is not set; start"),
        (BY_HAND | {"RANK": ""}, "WORLD_SIZE is 3, but RANK is not set; start"),
        (
            BY_HAND | {"RANK": "3"},
            "RANK is '3'; give a whole number from 0 to 2, or start the processes with torchrun",
        ),
        (BY_HAND | {"RANK": "-1"}, "RANK is '-1'; give a whole number from 0 to 2"),
        (BY_HAND | {"RANK": "one"}, "RANK is 'one'; give a whole number from 0 to 2"),
        (BY_HAND | {"MASTER_PORT": "http"}, "MASTER_PORT is 'http'; give a whole number from 1 to 65535"),
        (BY_HAND | {"MASTER_PORT": "70000"}, "MASTER_PORT is '70000'; give a whole number from 1 to 65535"),
        (
            BY_HAND | {"MASTER_ADDR": "10.0.0.1:29500"},
            "MASTER_ADDR is '10.0.0.1:29500'; give the name or address of",
        ),
        (
            BY_HAND | {"MASTER_ADDR": "tcp://there"},
            "MASTER_ADDR is 'tcp://there'; give the name or address of pr",
        ),
        (
            BY_HAND | {"MASTER_ADDR": "[::1]"},
            "MASTER_ADDR is '[::1]'; give the name or address of process 0's host",
        ),
        (TORCHRUN | {"LOCAL_RANK": "2"}, "LOCAL_RANK is '2'; give a whole number from 0 to 1"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "4"}, "LOCAL_WORLD_SIZE is '4'; give a whole number from 1 to 3"),
        (TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "x"}, "TORCHELASTIC_RESTART_COUNT is 'x'; give a whole number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'; give a whole number from 1, or start"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'; give a whole number from 1"),
        ({"WORLD_SIZE": "2.0"}, "WORLD_SIZE is '2.0'; give a whole number from 1"),
        ({"WORLD_SIZE": "²"}, "WORLD_SIZE is '²'; give a whole number from 1"),
        ({"WORLD_SIZE": "1", "RANK": "1"}, "RANK is '1'; give a whole number from 0 to 0"),
    ],
)
def test_variables_that_make_no_sense_leave_one_process_that_says_so(variables: dict[str, str], message: str) -> None:
    where = environment(variables)
    assert (where.rank, where.world_size) == (0, 1)
    assert where.mistake.startswith(message)
    with pytest.raises(ConfigError) as caught:
        where.check()
    assert caught.value.rank == where.rank, "this process tells it"


SLURM = {"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_STEP_ID": "0", "SLURM_LOCALID": "0"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"}
HYDRA = {"PMI_SIZE": "4", "PMI_RANK": "2"}
MVAPICH = {"MV2_COMM_WORLD_SIZE": "4", "MV2_COMM_WORLD_RANK": "2"}


@pytest.mark.parametrize(
    ("variables", "who"),
    [
        (SLURM, "srun has started 4 processes (SLURM_NTASKS)"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "4"}, "srun has started 4 processes (SLURM_STEP_NUM_TASKS)"),
        (OPEN_MPI, "mpirun has started 4 processes (OMPI_COMM_WORLD_SIZE)"),
        (HYDRA, "mpirun has started 4 processes (PMI_SIZE)"),
        (MVAPICH, "mpirun has started 4 processes (MV2_COMM_WORLD_SIZE)"),
    ],
)
def test_tasks_without_a_place_to_meet_are_refused_and_process_0_says_so(variables: dict[str, str], who: str) -> None:
    where = environment(variables)
    assert (where.rank, where.world_size) == (2, 4)
    with pytest.raises(ConfigError) as caught:
        where.check()
    assert str(caught.value).startswith(f"{who}, which cannot meet without MASTER_ADDR and MASTER_PORT; start them wi")
    assert caught.value.rank == 0


@pytest.mark.parametrize("variables", [SLURM, OPEN_MPI, HYDRA])
def test_tasks_that_can_meet_are_a_run(variables: dict[str, str]) -> None:
    assert environment(variables | MEETING) == Environment(2, 4, None, None, "there", 29500)


@pytest.mark.parametrize("variables", [SLURM, OPEN_MPI, HYDRA])
def test_what_torchrun_says_goes_before_what_started_it(variables: dict[str, str]) -> None:
    assert environment(variables | TORCHRUN) == environment(TORCHRUN)
    assert environment(variables | {"WORLD_SIZE": "1"}) == ALONE


def test_a_group_of_the_callers_says_rank_and_size() -> None:
    assert environment_of_group(1, 2, {}) == Environment(1, 2)
    assert environment_of_group(1, 2, SLURM) == Environment(1, 2)
    assert environment_of_group(1, 3, TORCHRUN) == environment(TORCHRUN)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (TORCHRUN, "WORLD_SIZE is 3, but the process group is of 2 processes, this one 1; unset RANK and WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "RANK is 0, but the process group is of 2 processes, this one 1; unset"),
    ],
)
def test_a_group_that_contradicts_the_variables_is_refused(variables: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        environment_of_group(1, 2, variables)
    assert str(caught.value).startswith(message)
