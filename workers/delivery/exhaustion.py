"""Whether a connection failed for want of something of this machine's: descriptors, ports, memory of the kernel."""

from __future__ import annotations

import errno
import socket

import aiohttp

_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Exhausted(Exception):  # noqa: N818 - it names what happened
    """No connection could be opened for want of something of ours, so nobody was asked. The text says of what."""


def exhausted_by(error: aiohttp.ClientConnectorError) -> str | None:
    """The name of what this machine lacks; None where the other side is to blame, or its name servers are.

    c-ares does not say why it could not ask, EADDRNOTAVAIL is also what a machine without IPv6 says of an address of
    that kind, and where several addresses failed in different ways there is no number: what stands behind these is
    asked of a socket of our own.
    """
    if error.errno in _OURS:
        return errno.errorcode[error.errno]
    if isinstance(error, aiohttp.ClientConnectorDNSError) or error.errno in (errno.EADDRNOTAVAIL, None):
        return _lacking()
    return None


def _lacking() -> str | None:
    """Why no socket can be opened and given a port, as an error's name; None where one can."""
    try:
        with socket.socket() as trial:
            trial.bind(("", 0))
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "unknown")
    return None
