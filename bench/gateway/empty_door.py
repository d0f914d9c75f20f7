"""The door's server around a handler that does nothing: `python -m bench.gateway.empty_door CERTIFICATE`.

The server prints its port, serves over TLS until SIGTERM, and answers POST /v1/jobs with 202 once it has the body.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from pathlib import Path

import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.door.server import DoorServer
from gateway.door.settings import GatewaySettings
from gateway.tls import DoorTls, TlsFiles
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from workers.system.tuning import collect_garbage_seldom


async def nothing(request: Request) -> Response:
    """Answer, and do nothing else."""
    await request.body()  # reads the body, because an unread body would end the connection
    return Response(b"{}", 202, media_type="application/json")


async def main(certificate: Path) -> None:
    """Serve until SIGTERM."""
    bound, clock = socket.create_server(("127.0.0.1", 0)), SystemClock()
    app = Starlette(routes=[Route("/v1/jobs", nothing, methods=["POST"])])
    tls = DoorTls(TlsFiles(certificate, certificate.with_suffix(".key")), clock)
    server = DoorServer(app, bound, tls.context, GatewaySettings(), clock, Metrics())
    serving = asyncio.create_task(server.ended())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, serving.cancel)
    print(bound.getsockname()[1], flush=True)
    await asyncio.wait([serving])


if __name__ == "__main__":
    collect_garbage_seldom()
    uvloop.run(main(Path(sys.argv[1])))
