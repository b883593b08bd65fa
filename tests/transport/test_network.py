"""Network interfaces that are not there, host names that lead nowhere, connections that cannot be made."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from pipeline.errors import ConfigError, StageFailure
from pipeline.transport import network
from pipeline.transport.control import Control
from pipeline.transport.links import LinkFactory, Transport
from pipeline.transport.network import check_interfaces, connecting


@pytest.mark.parametrize("named", ["nosuch0", "lo,nosuch0"])
def test_an_interface_that_is_not_there_is_named_with_those_that_are(
    named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", named)
    with pytest.raises(
        ConfigError, match=rf"^GLOO_SOCKET_IFNAME is '{named}', but .* has no address at 'nosuch0'; name"
    ):
        check_interfaces({"here"})


@pytest.mark.parametrize("named", ["lo", "x", ""])
def test_interfaces_that_gloo_takes_are_taken(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", named)
    check_interfaces({"here"})


def resolving_to(address: str | None) -> Any:
    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        if address is None:
            raise socket.gaierror("unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))]

    return getaddrinfo


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("127.0.0.1", "stands for 127.0.0.1 there"),
        (None, "cannot be resolved to an address of its own"),
        ("203.0.113.1", "cannot be resolved to an address of its own"),  # somebody else's
    ],
)
def test_a_name_by_which_other_hosts_cannot_find_this_one_is_told(
    address: str | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", resolving_to(address))
    check_interfaces({"here"})  # all on one host
    with pytest.raises(
        ConfigError, match=f"GLOO_SOCKET_IFNAME is not set, and the name of the host .* {told}, so that"
    ):
        check_interfaces({"here", "there"})


def test_an_address_of_this_host_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(network, "_own_address", lambda name: "192.0.2.7")
    check_interfaces({"here", "there"})


def test_a_connection_that_cannot_be_made_is_one_line_with_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    control = Control(HashStore(), 0, 2, timeout_s=5)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    with pytest.raises(
        StageFailure, match=r"^process 0 and process 1 cannot connect \(.*GLOO_SOCKET_IFNAME is 'nosuch0'"
    ):
        LinkFactory(control, Transport.GLOO, torch.device("cpu")).link(0, 1)
    control.close()


def test_a_broken_connection_is_left_to_those_who_know_more() -> None:
    control = Control(HashStore(), 0, 2, timeout_s=5)
    with pytest.raises(RuntimeError, match=r"^Connection closed by peer$"), connecting(control, 1):
        raise RuntimeError("Connection closed by peer")
    with pytest.raises(StageFailure, match=r"^stage 1 died$"), connecting(control, 1):
        raise StageFailure("stage 1 died")
    control.close()
