"""Connections that failed because this machine lacks resources: descriptors, ports, kernel memory."""

from __future__ import annotations

import errno
import socket

import aiohttp

_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Exhausted(Exception):  # noqa: N818 - named after the event
    """The machine lacked a resource for a connection, so no request was sent. The text is the error's name."""


def exhausted_by(error: aiohttp.ClientConnectorError) -> str | None:
    """Return the errno name of the resource that this machine lacks; None if it lacks no resource.

    None means that the other side or its name servers caused the error. Three errors leave the cause open, and then a
    trial socket decides: an error from c-ares, which has no errno; EADDRNOTAVAIL, which an IPv6 address also causes on
    a machine without IPv6; and the error of several addresses that failed differently, which has no errno.
    """
    if error.errno in _OURS:
        return errno.errorcode[error.errno]
    if isinstance(error, aiohttp.ClientConnectorDNSError) or error.errno in (errno.EADDRNOTAVAIL, None):
        return _lacking()
    return None


def _lacking() -> str | None:
    """Try to open a socket and to bind it to a port. Return the errno name of the failure; None on success."""
    try:
        with socket.socket() as trial:
            trial.bind(("", 0))
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "unknown")
    return None
