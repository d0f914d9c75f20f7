"""Our own PostgreSQL: Debian's package, unpacked into a cache if it is not installed. No service is started."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import psutil
import psycopg

from cli.devkit.kafka.jars import cache_home
from telemetry.clock import Deadline, SystemClock

_START_SECONDS = 60.0
_OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",  # this is safe, because the kernel keeps a killed process's writes
    "max_connections": "200",
    "log_min_messages": "panic",
}


class PostgresServer:
    """A context manager of a PostgreSQL on a free loopback port. PostgreSQL refuses root, and then runs as `nobody`.

    The role `postback` needs no password; other roles need one. With `port`, it stands for a server that runs there
    already: then it must not be entered.
    """

    def __init__(self, port: int = 0) -> None:
        self._clock = SystemClock()
        self._programs = _programs()
        self._folder = Path("/") if port else Path(tempfile.mkdtemp(prefix="postgres."))
        self._as: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self.port = port or _free_port()

    def __enter__(self) -> Self:
        if os.geteuid() == 0:
            self._as = {"user": "nobody", "group": "nogroup", "extra_groups": ()}
            shutil.chown(self._folder, "nobody", "nogroup")
        made = ["-D", str(self._data), "-U", "postback", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        self._run("initdb", *made).check_returncode()
        rules = (
            "all postback 127.0.0.1/32 trust",
            "replication postback 127.0.0.1/32 trust",
            "all all 127.0.0.1/32 scram-sha-256",
        )
        (self._data / "pg_hba.conf").write_text("".join(f"host {rule}\n" for rule in rules))
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def new_database(self, encoding: str = "UTF8") -> str:
        """Create an empty database; return its URL for SQLAlchemy."""
        name = f"db{uuid.uuid4().hex}"
        with psycopg.connect(self._dsn("postgres"), autocommit=True) as connection:
            made = f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 STRATEGY file_copy"
            connection.execute(made.encode())
        return f"postgresql+psycopg://postback@127.0.0.1:{self.port}/{name}"

    def command(self, *statements: str, database: str = "postgres") -> object:
        """Run statements; return the first value of the last statement's answer."""
        with psycopg.connect(self._dsn(database), autocommit=True) as connection:
            for statement in statements:
                found = connection.execute(statement.encode())
            row = found.fetchone() if found.description else None
        return row[0] if row else None

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        options = [part for name, value in _OPTIONS.items() for part in ("-c", f"{name}={value}")]
        self._process = subprocess.Popen(
            [self._programs / "postgres", "-D", self._data, "-p", str(self.port), *options],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            cwd=self._folder,
            **self._as,
        )
        deadline = Deadline.after(self._clock, _START_SECONDS)
        while not self._answers():
            assert self._process.poll() is None, "PostgreSQL ended at its start"
            assert not deadline.passed, "PostgreSQL did not start"
            self._clock.sleep(0.02)

    @contextmanager
    def copied(self) -> Iterator[PostgresServer]:
        """Yield a server with a copy of this stopped server's data, at the same address; it is not started."""
        with self._another() as other:
            subprocess.run(["cp", "-a", self._data, other._folder], check=True)
            other.port = self.port
            yield other

    @contextmanager
    def standby(self) -> Iterator[PostgresServer]:
        """Yield a running standby: from now on, a commit of this server waits until the standby has it too."""
        with self._another() as other:
            source = ["-d", self._dsn("postgres"), "--write-recovery-conf", "--checkpoint=fast", "--no-sync"]
            self._run("pg_basebackup", "-D", str(other._data), *source).check_returncode()
            other.start()
            self.command("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
            yield other

    def take_over(self, port: int) -> None:
        """Promote this standby, and let it serve at the address of its dead primary."""
        self.command("SELECT pg_promote()")
        self.kill()
        self.port = port
        self.start()

    @contextmanager
    def _another(self) -> Iterator[PostgresServer]:
        other = PostgresServer()
        other._as = self._as
        try:
            if self._as:
                shutil.chown(other._folder, "nobody", "nogroup")
            yield other
        finally:
            other.kill()
            shutil.rmtree(other._folder, ignore_errors=True)

    def kill(self) -> None:
        """Send SIGKILL to all processes of the server, as when a machine dies, and wait until all have ended.

        A child that still ends holds the shared memory, and the next start refuses it. The first process is frozen, so
        that it makes no further child meanwhile.
        """
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGSTOP)
        killed = self.processes()
        for process in killed:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        while any(map(_runs, killed)):
            self._clock.sleep(0.01)

    def dump(self, url: str, into: Path) -> None:
        """Write a backup of a database by `pg_dump`."""
        done = self._run("pg_dump", "-Fc", "-d", url.replace("+psycopg", ""))
        done.check_returncode()
        into.write_bytes(done.stdout)

    def restore(self, backup: Path) -> str:
        """Restore a backup into a new database by `pg_restore`; return its URL."""
        url = self.new_database()
        given = backup.read_bytes()
        self._run("pg_restore", "-d", url.replace("+psycopg", ""), given=given).check_returncode()
        return url

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    @property
    def _environment(self) -> dict[str, str]:
        root = self._programs.parents[3]
        libraries = (
            {} if root == Path("/usr") else {"LD_LIBRARY_PATH": ":".join(map(str, root.glob("lib/*-linux-gnu")))}
        )
        return {**os.environ, "LC_ALL": "C", **libraries}

    def processes(self) -> list[psutil.Process]:
        """Return the server's first process and its children."""
        assert self._process is not None
        with suppress(psutil.NoSuchProcess):
            first = psutil.Process(self._process.pid)
            return [first, *first.children(recursive=True)]
        return []

    def _run(self, program: str, *arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [self._programs / program, *arguments],
            env=self._environment,
            input=given,
            stdout=subprocess.PIPE,
            cwd=self._folder,
            check=False,
            **self._as,
        )

    def _dsn(self, database: str) -> str:
        return f"postgresql://postback@127.0.0.1:{self.port}/{database}?connect_timeout=5"

    def _answers(self) -> bool:
        try:
            psycopg.connect(self._dsn("postgres")).close()
        except psycopg.OperationalError:
            return False
        return True


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _free_port() -> int:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _programs() -> Path:
    """Return the folder of `initdb` and `postgres`: installed, or unpacked before, or unpacked now."""
    # If root runs the tests, unpack outside of root's home, because `nobody` cannot enter it.
    home = Path("/var/cache") if os.geteuid() == 0 else cache_home()
    unpacked = home / "postback" / "postgresql"
    for root in (Path("/"), unpacked):
        found = sorted(root.glob("usr/lib/postgresql/*/bin/initdb"))
        if found:
            return found[-1].parent
    unpacked.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="postgresql.", dir=unpacked.parent) as staging:
        _unpack(Path(staging))
        with suppress(OSError):  # another test run may have unpacked PostgreSQL meanwhile
            (Path(staging) / "root").rename(unpacked)
    return max(unpacked.glob("usr/lib/postgresql/*/bin/initdb")).parent


def _unpack(folder: Path) -> None:
    """Download the package and every package that it needs and the machine lacks; unpack all of them."""
    simulated = ["apt-get", "-s", "install", "--no-install-recommends", "postgresql"]
    if subprocess.run(simulated, capture_output=True, check=False).returncode != 0:
        subprocess.run(["apt-get", "update", "-q"], stdout=subprocess.DEVNULL, check=True)
    said = subprocess.run(simulated, capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"^Inst (\S+)", said, re.MULTILINE)
    folder.chmod(0o755)
    subprocess.run(["apt-get", "download", "-q", *needed], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, folder / "root"], check=True)
