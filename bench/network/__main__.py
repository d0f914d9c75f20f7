"""Measures requests over a slow link with settings of the connection and of the kernel: `python -m bench.network`."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from bench.network.link import CLIENT, SERVER, SERVER_ADDRESS, Conditions, EmulatedLink, slow_link, within
from bench.result import parsed, table, title
from cli.operations.certificates import key_pem, new_authority

SMALL, LARGE = 1_000, 8_000_000
_EXCHANGE = (sys.executable, "-m", "bench.network.exchange")


def main() -> None:
    """Print a table for each measurement: new and kept connections, congestion controls, pauses."""
    parsed(argparse.ArgumentParser(description=__doc__))
    title("Requests over a slow link of 50 Mbit/s, both ends with the kernel's TCP")
    with tempfile.TemporaryDirectory() as folder, slow_link() as link, serving(Path(folder)):
        connections(link)
        congestion(link)
        pauses(link)


@contextmanager
def serving(folder: Path) -> Iterator[None]:
    """Run a server in the server's namespace for a block."""
    command = ("ip", "netns", "exec", SERVER, *_EXCHANGE, "serve", SERVER_ADDRESS, str(certificate(folder)))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        if server.stdout is None or server.stdout.readline() != "ready\n":
            raise RuntimeError("the server did not start")
        try:
            yield
        finally:
            server.kill()


def certificate(folder: Path) -> Path:
    """Return a PEM file with a certificate and its key. The client checks neither."""
    authority = new_authority("bench", 1, datetime.now(UTC))
    file = folder / "server.pem"
    file.write_bytes(authority.certificate.public_bytes(Encoding.PEM) + key_pem(authority.key))
    return file


def connections(link: EmulatedLink) -> None:
    """Time a request of 1 kB on a new connection and on a kept one, for each round trip."""
    rows = []
    for milliseconds in (10, 50, 100, 200):
        link.conditions = Conditions(round_trip_seconds=milliseconds / 1000)
        new, kept = (median_ms(size=SMALL, repeats=7, kept=kept) for kept in (False, True))
        rows.append((f"{milliseconds} ms", f"{new:.0f} ms", f"{kept:.0f} ms"))
    table(("round trip", "request on a new connection", "on a kept one"), rows)


def congestion(link: EmulatedLink) -> None:
    """Time a body of 8 MB for each congestion control and loss, with a round trip of 100 ms."""
    rows = []
    for loss in (0.0, 0.0001, 0.001, 0.01):
        link.conditions = replace(Conditions(), loss=loss)
        repeats = 3 if loss >= 0.01 else 9
        medians = (median_ms(size=LARGE, repeats=repeats, kept=False, control=each) for each in ("cubic", "bbr"))
        rows.append((f"{loss:.2%}", *(f"{median / 1000:.1f} s" for median in medians)))
    table(("packets lost", "cubic", "bbr"), rows)


def pauses(link: EmulatedLink) -> None:
    """Time a body of 1 MB on a kept connection after a pause, with and without a slow start after the pause."""
    rows = []
    link.conditions = Conditions()
    for value in (1, 0):
        within(CLIENT, "sysctl", "-qw", f"net.ipv4.tcp_slow_start_after_idle={value}")
        rows.append((value, f"{median_ms(size=1_000_000, repeats=5, kept=True, pause_seconds=3):.0f} ms"))
    table(("net.ipv4.tcp_slow_start_after_idle", "1 MB after a pause of 3 s"), rows)


def median_ms(*, size: int, repeats: int, kept: bool, pause_seconds: float = 0, control: str = "cubic") -> float:
    """Return the median time of requests, which a client in its own namespace sends."""
    asked = {"size": size, "repeats": repeats, "kept": kept, "pause_seconds": pause_seconds, "control": control}
    command = ("ip", "netns", "exec", CLIENT, *_EXCHANGE, "measure", SERVER_ADDRESS, json.dumps(asked))
    times: list[float] = json.loads(subprocess.check_output(command, text=True))
    return 1000 * statistics.median(times)


if __name__ == "__main__":
    main()
