"""The programs of docs/WEBHOOKS.md, extracted from the page and run as consumers run them."""

from __future__ import annotations

import http.client
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from cli.devkit.kafka.jars import ensure_jars, java
from telemetry.clock import Deadline, SystemClock
from tests.debian_package import unpacked
from tests.go_tools import go, run
from tests.node_tools import STANDARDWEBHOOKS, modules, node

PAGE = Path(__file__).parents[2] / "docs" / "WEBHOOKS.md"
DOCUMENT = PAGE.read_text()
PROGRAMS = {
    name: code
    for code, name in re.findall(
        r"^```(?:python|js|go|java|php|ruby)\n((?:<\?php\n)?(?:#|//) (\S+)\n.*?)^```$",
        DOCUMENT,
        re.MULTILINE | re.DOTALL,
    )
}
"""The text of each program of the page, by the file name in the program's first line."""

GO_MODULE = """module consumer

go 1.22

require github.com/standard-webhooks/standard-webhooks/libraries v0.0.1
"""
CLOCK = SystemClock()


@dataclass
class Consumer:
    """A running program of the page that listens for callbacks."""

    port: int
    printed: IO[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def answer(self, headers: Mapping[str, str], body: bytes) -> int:
        """POST a request and return its status; header names are sent in the given case."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", "/hook", body, dict(headers))
            return connection.getresponse().status
        finally:
            connection.close()

    def line(self) -> str:
        """The next line of the program's output."""
        return self.printed.readline().rstrip("\n")


@contextmanager
def consuming(name: str, folder: Path, **environment: str) -> Iterator[Consumer]:
    """Run the program on a free port until the block ends."""
    port = free_port()
    code = PROGRAMS[name]
    assert "8080" in code
    (folder / name).write_text(code.replace("8080", str(port)))
    command = prepared(name, folder, port)
    with (folder / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            encoding="utf-8",
        )
    with process:
        assert process.stdout is not None
        try:
            wait_until_listening(process, port, folder / "stderr")
            yield Consumer(port, process.stdout)
        finally:
            process.kill()


def prepared(name: str, folder: Path, port: int) -> list[str]:
    """The program's command line; installs what it needs first."""
    if name.endswith(".py"):
        return [sys.executable, name]
    if name.endswith(".mjs"):
        (folder / "node_modules").symlink_to(modules(STANDARDWEBHOOKS))
        return [str(node()), name]
    if name.endswith(".java"):
        jackson = f"{ensure_jars()}/*"  # Kafka has Jackson's jars
        return [java(), "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-cp", jackson, name]
    if name.endswith(".php"):
        return [*debian("php8.2", "php8.2-cli", "libargon2-1", "libsodium23"), "-n", "-S", f"127.0.0.1:{port}", name]
    if name.endswith(".rb"):
        return [*debian("ruby3.1", "ruby3.1", "libruby3.1", "ruby-webrick"), "--disable-gems", name]
    (folder / "go.mod").write_text(GO_MODULE)
    run(
        [str(go()), "build", "-mod=mod", "-o", "consumer", name],
        fix="the Go module proxy has to be reachable (GOPROXY), or the module already be in the cache",
        env={**os.environ, "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"},
        cwd=folder,
    )
    return [str(folder / "consumer")]


def debian(program: str, *packages: str) -> list[str]:
    """The command line of a program of Debian's packages, which are unpacked and not installed."""
    roots = [unpacked(package) for package in packages]
    libraries = [folder for root in roots for folder in root.glob("usr/lib/*-linux-gnu")]
    ruby = [*(root / "usr/lib/ruby/3.1.0" for root in roots), *(folder / "ruby/3.1.0" for folder in libraries)]
    ruby += [folder for root in roots for folder in root.glob("usr/share/rubygems-integration/all/gems/*/lib")]
    [found] = [path for root in roots if (path := root / "usr/bin" / program).exists()]
    paths = {"LD_LIBRARY_PATH": libraries, "RUBYLIB": ruby}
    return ["env", *(f"{name}={':'.join(map(str, folders))}" for name, folders in paths.items()), str(found)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_listening(process: subprocess.Popen[str], port: int, stderr: Path) -> None:
    deadline = Deadline.after(CLOCK, 60)
    while not deadline.passed and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        CLOCK.sleep(0.05)
    pytest.fail(f"the consumer does not listen: {stderr.read_text()[-2000:]}")
