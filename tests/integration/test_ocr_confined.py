"""A picture that takes over tesseract reaches no file, no network and no other program."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import pytest

from tests.scanned import saved, scanned, tesseract
from workers.enrichment.processes.tesseract import Tesseract, fenced

ATTEMPTS = """
import errno, json, os, socket, sys
keyring, written, port, parent = sys.argv[1:]
attempts = {
    "password": lambda: open("/etc/passwd").read(),
    "keyring": lambda: open(keyring).read(),
    "environ": lambda: open(f"/proc/{parent}/environ").read(),
    "write": lambda: open(written, "w"),
    "tcp": lambda: socket.create_connection(("127.0.0.1", int(port)), timeout=5),
    "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    "fork": lambda: os.fork() or os._exit(0),
    "program": lambda: os.execv("/bin/sh", ["sh", "-c", "exit 3"]),
    "signal": lambda: os.kill(int(parent), 0),
    "own": lambda: open(sys.executable, "rb").close(),
}
found = {}
for name, attempt in attempts.items():
    try:
        attempt()
        found[name] = "done"
    except OSError as error:
        found[name] = errno.errorcode[error.errno]
print(json.dumps(found))
"""


def test_a_fenced_program_reads_its_own_files_and_nothing_else(tmp_path: Path) -> None:
    """Python runs a stranger's code in tesseract's place, with the same confinement."""
    keyring = tmp_path / "keyring.json"
    keyring.write_text("secret")
    own = [*{sys.base_prefix + "/lib", "/usr/lib", "/lib64"}, os.path.realpath(sys.executable), "/etc/ld.so.cache"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        told = [str(keyring), str(tmp_path / "written"), str(server.getsockname()[1]), str(os.getpid())]
        command = [os.path.realpath(sys.executable), "-I", "-S", "-c", ATTEMPTS, *told]
        output, _ = fenced(command, own, 60).communicate(timeout=60)
    found = json.loads(output)
    assert found.pop("own") == "done"
    assert set(found.values()) <= {"EACCES", "EPERM", "ENOSYS"}, found
    assert len(found) == 9


@pytest.mark.parametrize("is_named", [False, True])
def test_tesseract_reads_its_input_and_no_file_that_the_input_names(tmp_path: Path, is_named: bool) -> None:
    """If the input is no image, tesseract reads it as a list of image files."""
    tesseract()
    picture = saved(scanned("The secret is kept in Tarnby."), "PNG")
    file = tmp_path / "picture.png"
    file.write_bytes(picture)
    given = f"{file}\n".encode() if is_named else picture
    output, _ = Tesseract.find("eng").start("eng", 60).communicate(given, timeout=60)
    assert (b"The secret is kept in Tarnby." in output) == (not is_named)
