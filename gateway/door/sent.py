"""A response's progress, read from the kernel. Over TLS, buffers below the transport hide that progress from asyncio.

Source: Linux, `tcp(7)` (SIOCOUTQ, TCP_INFO) and `struct tcp_info` in `include/uapi/linux/tcp.h`.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios

_BYTES_ACKED = struct.Struct("=120xQ")
"""The byte offset of `tcpi_bytes_acked`: after 8 bytes, 24 numbers of 32 bits and two rates of 64 bits."""


def unacknowledged_bytes(connection: socket.socket) -> int:
    """Return the number of bytes that the kernel holds for the peer.

    If the result is 0, the process holds no bytes for the peer either.
    """
    try:
        return int(struct.unpack("=i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))[0])
    except (OSError, ValueError):
        return 0  # the socket is closed, and holds no bytes


def acknowledged_bytes(connection: socket.socket) -> int:
    """Return the number of bytes that the peer has acknowledged since the connection began."""
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size)
    except OSError:
        return 0  # the socket is closed
    return int(_BYTES_ACKED.unpack(info)[0])
