"""A process with a secret, and another that tries to read it; both drop root's privileges if they have them."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector

from telemetry.metrics import Metrics
from workers.system import secrecy

NOBODY = 65534


def main() -> None:
    """Print the files that another process of the same user may open, before `harden_process` and after."""
    Metrics()  # imports the needed modules while root's files are still readable
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        # The change of user cleared this flag. Set it again, as an exec would.
        secrecy.prctl(secrecy.PR_SET_DUMPABLE, 1)
    before = opened_by_another()
    secrecy.harden_process()
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    names = [sample.name for metric in registry.collect() for sample in metric.samples]
    status = Path("/proc/self/status").read_text()
    json.dump(
        {
            "before": before,
            "after": opened_by_another(),
            "core": resource.getrlimit(resource.RLIMIT_CORE),
            "no_new_privs": "NoNewPrivs:\t1" in status,
            "metrics": sorted(names),
            "open_files": any(Path("/proc/self/fd").iterdir()),
        },
        sys.stdout,
    )


def opened_by_another() -> list[str]:
    """This process's files that another process of the same user may open."""
    me = os.getpid()
    read, write = os.pipe()
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(secrecy.PR_SET_DUMPABLE, 1, 0, 0, 0)
        opened = []
        for name in ("environ", "mem", "maps"):
            try:
                os.close(os.open(f"/proc/{me}/{name}", os.O_RDONLY))
            except PermissionError:
                continue
            opened.append(name)
        os.write(write, json.dumps(opened).encode())
        os._exit(0)
    os.wait()
    found: list[str] = json.loads(os.read(read, 4096))
    return found


if __name__ == "__main__":
    main()
