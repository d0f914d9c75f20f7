"""A TLS server that answers each body with a byte, and a client that times requests to that server.

Server and client have a network namespace each. A request is its body's length as eight bytes, then the body. The
answer is one byte. Nagle's algorithm is off.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import sys
import threading
import time
from pathlib import Path

_LENGTH = struct.Struct(">Q")
PORT = 8443
_PIECE = 1 << 18


def serve(address: str, certificate: Path) -> None:
    """Answer requests until the process is killed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with socket.create_server((address, PORT), backlog=64) as listening:
        print("ready", flush=True)
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=_answer, args=(context, connection), daemon=True).start()


def _answer(context: ssl.SSLContext, plain: socket.socket) -> None:
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with context.wrap_socket(plain, server_side=True) as connection, connection.makefile("rb") as incoming:
        while head := incoming.read(_LENGTH.size):
            (left,) = _LENGTH.unpack(head)
            while left > 0:
                left -= len(incoming.read(min(left, _PIECE)))
            connection.sendall(b"1")


def connected(address: str, control: str) -> ssl.SSLSocket:
    """Return a new connection with this congestion control. The client does not check the certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    plain = socket.create_connection((address, PORT))
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, control.encode())
    return context.wrap_socket(plain)


def ask(connection: ssl.SSLSocket, size: int) -> None:
    """Send one request, and wait for its answer."""
    connection.sendall(_LENGTH.pack(size) + bytes(size))
    connection.recv(1)


def measure(address: str, size: int, repeats: int, *, kept: bool, pause_seconds: float, control: str) -> list[float]:
    """Return the seconds of each request. With `kept`, all use one connection that an earlier request has opened."""
    times = []
    connection = connected(address, control)
    ask(connection, size if pause_seconds else 1)
    for _ in range(repeats):
        time.sleep(pause_seconds)
        begin = time.perf_counter()
        if not kept:
            connection.close()
            connection = connected(address, control)
        ask(connection, size)
        times.append(time.perf_counter() - begin)
    connection.close()
    return times


def main() -> None:
    """Run the server, or one measurement, whose seconds are printed as JSON."""
    if sys.argv[1] == "serve":
        serve(sys.argv[2], Path(sys.argv[3]))
    asked = json.loads(sys.argv[3])
    print(json.dumps(measure(sys.argv[2], **asked)))


if __name__ == "__main__":
    main()
