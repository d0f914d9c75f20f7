"""Processes with secrets cannot be read by other processes of the same user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.postback_command import environment_of, line_of, started


def test_a_process_that_keeps_its_secrets_is_readable_by_no_other_and_still_measures_itself() -> None:
    """The user is unprivileged, like uid 10001 of the image; prometheus still reads the process's own /proc."""
    script = Path(__file__).parent / "secret_process.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, env=environment)
    found = json.loads(done.stdout)
    assert found["before"] == ["environ", "mem", "maps"]
    assert found["after"] == []
    assert found["core"] == [0, 0]
    assert found["no_new_privs"]
    assert found["open_files"]
    assert set(found["metrics"]) >= {
        "process_cpu_seconds_total",
        "process_max_fds",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "process_virtual_memory_bytes",
    }


def test_every_command_keeps_its_secrets(tmp_path: Path) -> None:
    """A process's dumpable flag is visible from inside only; this test checks the other effects of `harden_process`."""
    environment = environment_of(POSTBACK_KEYRING=tmp_path / "keyring.json")
    process = started("receive", "--port", "0", env=environment)
    try:
        line_of(process.stderr)
        about = Path(f"/proc/{process.pid}")
        assert "NoNewPrivs:\t1" in (about / "status").read_text()
        limits = (about / "limits").read_text().splitlines()
        assert ["0", "0"] in [line.split()[4:6] for line in limits if line.startswith("Max core file size")]
    finally:
        process.kill()
        process.communicate()
