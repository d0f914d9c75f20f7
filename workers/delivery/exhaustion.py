"""Connections that failed for lack of this machine's own resources: descriptors, ports, kernel memory."""

from __future__ import annotations

import errno
import socket

import aiohttp

_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Exhausted(Exception):  # noqa: N818 - named after the event
    """No connection could be opened for lack of a resource of ours, so no request was sent. The text is its error."""


def exhausted_by(error: aiohttp.ClientConnectorError) -> str | None:
    """The errno name of this machine's shortage; None if the other side or its name servers are to blame.

    Three errors leave the cause open. c-ares gives none, EADDRNOTAVAIL is also the error for an IPv6 address without
    IPv6, and several addresses that failed differently have no errno. A socket of our own then decides.
    """
    if error.errno in _OURS:
        return errno.errorcode[error.errno]
    if isinstance(error, aiohttp.ClientConnectorDNSError) or error.errno in (errno.EADDRNOTAVAIL, None):
        return _lacking()
    return None


def _lacking() -> str | None:
    """The errno name if no socket can be opened and bound to a port; None if one can."""
    try:
        with socket.socket() as trial:
            trial.bind(("", 0))
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "unknown")
    return None
