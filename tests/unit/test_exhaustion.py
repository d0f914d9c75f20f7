"""Exhausted resources of this machine are told apart from failures of the server that it calls."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
from collections.abc import Callable

import aiohappyeyeballs
import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey

from tests.open_files import no_files_left
from workers.delivery.exhaustion import exhausted_by
from workers.system.tuning import allow_open_files

KEY = ConnectionKey("hooks.example", 443, True, True, None, None, None)


def failed(number: int) -> aiohttp.ClientConnectorError:
    return aiohttp.ClientConnectorError(KEY, OSError(number, os.strerror(number)))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_an_error_of_our_kernel_is_ours(number: int) -> None:
    assert exhausted_by(failed(number)) == errno.errorcode[number]


@pytest.mark.parametrize("number", [errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ECONNRESET])
def test_an_error_of_the_network_is_not_ours(number: int) -> None:
    with no_files_left():
        assert exhausted_by(failed(number)) is None


def failed_in_two_ways() -> aiohttp.ClientConnectorError:
    """The error for a name with two addresses: one refuses the connection, the other has no route."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        hosts = ("127.0.0.1", "255.255.255.255")
        addresses = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, port)) for host in hosts]
        with pytest.raises(OSError, match="Multiple exceptions") as said:
            asyncio.run(aiohappyeyeballs.start_connection(addresses, happy_eyeballs_delay=0.25))
    return aiohttp.ClientConnectorError(KEY, said.value)


@pytest.mark.parametrize(
    "fail",
    [
        lambda: failed(errno.EADDRNOTAVAIL),
        lambda: aiohttp.ClientConnectorDNSError(KEY, OSError(None, "could not contact DNS servers")),
        failed_in_two_ways,
    ],
    ids=["no-address", "dns", "two-ways"],
)
def test_an_ambiguous_error_is_ours_if_we_can_open_no_socket(
    fail: Callable[[], aiohttp.ClientConnectorError],
) -> None:
    error = fail()
    assert exhausted_by(error) is None
    with no_files_left():
        assert exhausted_by(error) == "EMFILE"


def test_a_process_has_as_many_open_files_as_it_may() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        allow_open_files()
        most = 1 << 20
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most if hard < 0 else min(hard, most), hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
