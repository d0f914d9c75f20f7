"""Runs the demo's processes: writes their logs, waits until they are ready, and ends them when the demo ends."""

from __future__ import annotations

import http.client
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from telemetry.clock import Clock, Deadline, SystemClock

POSTBACK = Path(sys.executable).with_name("postback")
_PORT = re.compile(r"metrics and health on port (\d+)")
_POLL_SECONDS = 0.1
_ANSWER_SECONDS = 5.0
_STOP_SECONDS = 15.0
_LOG_LINES = 15
_LOG_COLUMNS = 500
_CLOCK = SystemClock()


class ChildFailed(Exception):  # noqa: N818 - named after the event
    """A process of the demo ended, or did not become ready. The text ends with the last lines of its log."""


class ChildProcess:
    """One `postback …` process in its own session, so that Ctrl-C reaches only the demo, which then stops its children.

    On a machine with `setpriv` (util-linux), the kernel kills the process when the demo is killed.
    """

    def __init__(self, arguments: tuple[str, ...], environment: Mapping[str, str], log: Path) -> None:
        self.name = f"postback {arguments[0]}"
        self._log = log
        leash = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*leash, POSTBACK, *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def check(self) -> None:
        """Raise ChildFailed if the process has ended."""
        status = self._process.poll()
        if status is not None:
            raise ChildFailed(f"`{self.name}` ended with status {status}. {self.last_lines()}")

    @property
    def ready(self) -> bool:
        """True if the process's `/readyz` answers 200."""
        found = _PORT.search(self.log)
        if found is None:
            return False
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=_ANSWER_SECONDS)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.HTTPStatus.OK
        except OSError:
            return False
        finally:
            connection.close()

    @property
    def log(self) -> str:
        """Everything that the process has written so far."""
        return self._log.read_text(errors="replace")

    def last_lines(self) -> str:
        """Return the last lines of the process's log as text."""
        lines = self.log.splitlines()[-_LOG_LINES:]
        return "\n".join(["The end of its log:", *(f"  {line[:_LOG_COLUMNS]}" for line in lines)])

    def ask_to_stop(self) -> None:
        """Send SIGTERM; the process then drains and ends."""
        self._process.terminate()

    def stop(self, deadline: Deadline) -> None:
        """Wait for the process's end, and kill it at the deadline."""
        try:
            self._process.wait(timeout=deadline.remaining)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Children:
    """A context manager that ends every process that was started in it."""

    def __init__(self, environment: Mapping[str, str], logs: Path, clock: Clock = _CLOCK) -> None:
        self._environment = environment
        self._logs = logs
        self._clock = clock
        self._running: list[ChildProcess] = []

    def start(self, *arguments: str) -> ChildProcess:
        """Run `postback` with these arguments."""
        child = ChildProcess(arguments, self._environment, self._logs / f"{arguments[0]}.log")
        self._running.append(child)
        return child

    def wait_ready(self, child: ChildProcess, seconds: float) -> None:
        """Return when the child is ready. Raises ChildFailed if any child ends first, or the time is up."""
        deadline = Deadline.after(self._clock, seconds)
        while not child.ready:
            self.check()
            if deadline.passed:
                raise ChildFailed(f"`{child.name}` was not ready after {seconds:g} s. {child.last_lines()}")
            self._clock.sleep(_POLL_SECONDS)

    def check(self) -> None:
        """Raise ChildFailed for the first child that has ended."""
        for child in self._running:
            child.check()

    def last_lines(self) -> str:
        """Return the last lines of all logs as text."""
        return "\n".join(f"`{child.name}` still runs. {child.last_lines()}" for child in self._running)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._running:
            child.ask_to_stop()
        deadline = Deadline.after(self._clock, _STOP_SECONDS)
        for child in self._running:
            child.stop(deadline)
