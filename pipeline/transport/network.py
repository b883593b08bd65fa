"""The network under the links: whether gloo finds the address of this host, and connections that cannot be made."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch.distributed as dist

from pipeline.errors import ConfigError, PipelineError, StageFailure, first_line
from pipeline.transport.control import Control
from pipeline.transport.verdict import lost_connection

__all__ = ["check_interfaces", "connecting", "why"]

_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def check_interfaces(hosts: Collection[str]) -> None:
    """Raise ConfigError unless processes on `hosts` can find this one where gloo will listen."""
    named = os.environ.get("GLOO_SOCKET_IFNAME", "")
    if len(named) > 1:  # gloo passes over a single letter
        for interface in named.split(","):
            _check_interface(interface, named)
    elif len(hosts) > 1:
        _check_own_address(os.uname().nodename)


def _check_interface(interface: str, named: str) -> None:
    try:
        dist.ProcessGroupGloo.create_device(interface=interface)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"GLOO_SOCKET_IFNAME is {named!r}, but {os.uname().nodename} has no address at {interface!r}; name one of "
            f"{_interfaces()}, or unset GLOO_SOCKET_IFNAME"
        ) from error


def _check_own_address(name: str) -> None:
    """Where no interface is named, gloo listens at what this host's name stands for: at worst at 127.0.0.1."""
    address = _own_address(name)
    if address is None or ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        found = "cannot be resolved to an address of its own" if address is None else f"stands for {address} there"
        raise ConfigError(
            f"GLOO_SOCKET_IFNAME is not set, and the name of the host {name} {found}, so that the other hosts cannot "
            f"find it; set GLOO_SOCKET_IFNAME to one of {_interfaces()}"
        )


def _own_address(name: str) -> str | None:
    """The first address of a name that is one of this host."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return None
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.bind(address)
            except OSError:
                continue
            return str(address[0])
    return None


def _interfaces() -> str:
    return ", ".join(name for _, name in socket.if_nameindex())


@contextmanager
def connecting(control: Control, peer: int) -> Iterator[None]:
    """Make what goes wrong inside, while two processes connect, a failure of one line.

    A connection that breaks is left to those who know who has died.
    """
    try:
        yield
    except PipelineError:
        raise
    except (RuntimeError, ValueError) as error:
        if lost_connection(error):
            raise
        us, them = control.describe(control.rank), control.describe(peer)
        raise StageFailure(f"{us} and {them} cannot connect {why(error)}; look at the network between them") from error


def why(error: BaseException) -> str:
    """The reason that torch gives, and the settings that it may lie in."""
    settings = (f"{name} is {os.environ[name]!r}" for name in _VARIABLES if os.environ.get(name))
    return f"({', '.join([first_line(error), *settings])})"
