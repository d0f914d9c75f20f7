"""A real S3 server: versitygw (Apache-2.0), built from its Go module, over a folder."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.go_tools import GoTool, ensure
from tests.product import eventually

VERSITYGW = GoTool("github.com/versity/versitygw/cmd/versitygw", "v1.8.0")
ACCESS = "postback-test"
SECRET = "postback-test-secret"


@contextmanager
def s3_server(folder: Path, bucket: str) -> Iterator[str]:
    """Serve the buckets in `folder`, among them a new one named `bucket`; yield the endpoint."""
    (folder / bucket).mkdir(parents=True)
    sidecar = folder.parent / "sidecar"  # a folder for metadata, since not every file system has extended attributes
    sidecar.mkdir()
    port = _free_port()
    environment = {**os.environ, "ROOT_ACCESS_KEY": ACCESS, "ROOT_SECRET_KEY": SECRET}
    command = [
        str(ensure(VERSITYGW)),
        "--port",
        f"127.0.0.1:{port}",
        "--quiet",
        "posix",
        "--sidecar",
        str(sidecar),
        str(folder),
    ]
    with (folder.parent / "versitygw.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        eventually(lambda: _serves(port), 60, (folder.parent / "versitygw.log").read_text)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return int(bound.getsockname()[1])


def _serves(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
