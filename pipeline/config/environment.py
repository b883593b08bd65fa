"""Where a launcher put this process: torchrun's variables, else those of srun or mpirun. Nothing else reads them."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipeline.errors import ConfigError

__all__ = ["Environment", "environment", "environment_of_group"]

_NAME = re.compile(r"[\w.-]+")  # of a host
_SPECIAL_STEP = 0xFFFFFFF0  # Slurm numbers the steps that are no tasks, such as a batch script's, from here on


@dataclass(frozen=True)
class Environment:
    """This process among the others of its run.

    Attributes:
        local_rank, local_world_size: among those of its host; None where nobody has said.
        host, port: where they meet; empty and 0 where there is nobody to meet.
        agent_store: whether torchrun has the store there, which outlives the processes.
        attempt: how often torchrun has started the processes anew.
        may_restart: whether it would.
        mistake: what is wrong with the variables; empty where nothing is.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int | None = None
    local_world_size: int | None = None
    host: str = ""
    port: int = 0
    agent_store: bool = False
    attempt: int = 0
    may_restart: bool = False
    mistake: str = ""

    @property
    def first_here(self) -> int:
        """The first process of this one's host; this one where nobody has said."""
        return self.rank - (self.local_rank or 0)

    @property
    def outlived(self) -> bool:
        """Whether torchrun's store would see another attempt of this run, or has seen an earlier one."""
        return self.agent_store and bool(self.host) and self.may_restart

    def check(self) -> None:
        """Raise ConfigError if the variables are not those of one run. Process 0 is the one to tell it."""
        if self.mistake:
            raise ConfigError(self.mistake)


def environment(variables: Mapping[str, str] = os.environ) -> Environment:
    """Read the variables; without any, and where they make no sense, this is the only process."""
    try:
        return _placed({name: value.strip() for name, value in variables.items() if value.strip()})
    except ConfigError as error:
        return Environment(mistake=str(error))


def environment_of_group(rank: int, world_size: int, variables: Mapping[str, str] = os.environ) -> Environment:
    """The place that a process group of the caller's gives; raises ConfigError if the variables say another one."""
    given = {name: value.strip() for name, value in variables.items() if value.strip()}
    for name, value in (("RANK", rank), ("WORLD_SIZE", world_size)):
        if given.get(name, str(value)) != str(value):
            raise ConfigError(
                f"{name} is {given[name]}, but the process group is of {world_size} processes, this one {rank}; unset "
                "RANK and WORLD_SIZE, or make the group of what they say"
            )
    where = Environment(rank, world_size)
    return _with_meeting(_neighbours(where, given) if "RANK" in given else where, given)


def _placed(given: Mapping[str, str]) -> Environment:
    return _with_meeting(_of_torchrun(given) or _of_tasks(given), given)


def _with_meeting(where: Environment, given: Mapping[str, str]) -> Environment:
    """With what is given of the place to meet, and of the attempts to."""
    # Without WORLD_SIZE, which torchrun always sets, it is what an outer launch has left in the environment.
    agent_store = given.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and "WORLD_SIZE" in given
    if (where.world_size > 1 or agent_store) and {"MASTER_ADDR", "MASTER_PORT"} <= given.keys():
        port = _number(given, "MASTER_PORT", 1, 65535)
        where = replace(where, host=_host(given["MASTER_ADDR"]), port=port, agent_store=agent_store)
    attempt, most = (_number(given, f"TORCHELASTIC_{name}", 0) for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    return replace(where, attempt=attempt, may_restart=most > 0)


def _host(text: str) -> str:
    """A name or an address. Raises ConfigError for what can be neither, which nobody needs to look for."""
    try:
        if not _NAME.fullmatch(text):
            ipaddress.IPv6Address(text)
    except ValueError:
        raise ConfigError(
            f"MASTER_ADDR is {text!r}; give the name or address of process 0's host alone, its port as MASTER_PORT, "
            "or start the processes with torchrun"
        ) from None
    return text


def _of_torchrun(given: Mapping[str, str]) -> Environment | None:
    """By the variables that torchrun sets, or a person in its place; None without them."""
    if "WORLD_SIZE" not in given:
        for name in ("RANK", "LOCAL_RANK"):
            if name in given:
                raise ConfigError(
                    f"{name} is {given[name]}, but WORLD_SIZE is not set; unset {name} to train in one process, or "
                    "start several with torchrun"
                )
        return None
    size = _number(given, "WORLD_SIZE", 1)
    if size > 1:
        for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
            if name not in given:
                raise ConfigError(
                    f"WORLD_SIZE is {size}, but {name} is not set; start all processes with torchrun, or unset "
                    "WORLD_SIZE to train in one"
                )
    return _neighbours(Environment(_number(given, "RANK", 0, size - 1), size), given)


def _neighbours(where: Environment, given: Mapping[str, str]) -> Environment:
    """With the place among the processes of this host, as far as it is given; alone, that says only which GPU."""
    alone, size = where.world_size == 1, None
    if "LOCAL_WORLD_SIZE" in given and not alone:
        size = _number(given, "LOCAL_WORLD_SIZE", 1, where.world_size)
    top = None if alone else (size or where.world_size) - 1
    rank = _number(given, "LOCAL_RANK", 0, top) if "LOCAL_RANK" in given else None
    return replace(where, local_rank=rank, local_world_size=size)


def _of_tasks(given: Mapping[str, str]) -> Environment:
    """By what srun or mpirun says of several tasks. Where they have nowhere to meet, that is a mistake.

    Each would train the whole network alone, and write the same run folder.
    """
    launchers = (
        ("mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
        ("mpirun", "PMI_SIZE", "PMI_RANK"),
        ("mpirun", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
        ("srun", _slurm_tasks(given), "SLURM_PROCID"),
    )
    for launcher, tasks, rank in launchers:
        size = _number(given, tasks, 1) if tasks in given and rank in given else 1
        if size > 1:
            where = Environment(_number(given, rank, 0, size - 1), size)
            missing = " and ".join(name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in given)
            return replace(where, mistake=_NOWHERE.format(launcher, tasks, size, missing)) if missing else where
    return Environment()


_NOWHERE = (
    "{0} has started {2} processes ({1}), which cannot meet without {3}; start them with torchrun, set MASTER_ADDR "
    "and MASTER_PORT to the host of process 0 and a free port there, or set WORLD_SIZE=1 to train in each alone"
)


def _slurm_tasks(given: Mapping[str, str]) -> str:
    """The variable with the number of tasks of this step; empty outside of one.

    A batch script has SLURM_NTASKS and SLURM_PROCID, too, though it is one process: only a step has a number.
    """
    step = given.get("SLURM_STEP_ID", given.get("SLURM_STEPID", ""))
    if not step.isdecimal() or int(step) >= _SPECIAL_STEP:
        return ""
    return next((name for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") if name in given), "")


def _number(given: Mapping[str, str], name: str, low: int, high: int | None = None) -> int:
    """A variable that holds a whole number; without it, the lowest. Raises ConfigError for another one."""
    text = given.get(name, str(low))
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1
    if number < low or (high is not None and number > high):
        top = "" if high is None else f" to {high}"
        raise ConfigError(
            f"{name} is {text!r}; give a whole number from {low}{top}, or start the processes with torchrun"
        )
    return number
