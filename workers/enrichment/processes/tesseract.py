"""Finds the program tesseract on this machine, and starts it behind fences of its own."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import ceil
from typing import Final

from workers.processes.confinement import confine, end_with
from workers.system.errors import ProcessError

VARIABLE: Final = "POSTBACK_ENRICHMENT__OCR"
_LISTED: Final = re.compile(r'^List of available languages in "([^"\n]+)"[^\n]*\n(.*)', re.DOTALL | re.MULTILINE)
"""Matches the output of `tesseract --list-langs` since version 5: the folder of data, and a language in each line."""
_LIBRARY: Final = re.compile(r"(/\S+) \(0x")
"""Matches a library, or the loader, in the output of ldd(1)."""
_LOADERS_CACHE: Final = "/etc/ld.so.cache"
_QUERY_SECONDS: Final = 30
_OPEN_FILES: Final = 64
_LANGUAGES_SHOWN: Final = 8
_ALARM_GRACE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Tesseract:
    """The installed program, and the files that it needs."""

    program: str
    data: str
    """The folder with the data of the languages."""
    libraries: tuple[str, ...]

    @classmethod
    def find(cls, languages: str) -> Tesseract:
        """Find the program, its libraries and its data. Raises ProcessError if one of these is missing."""
        if find_spec("PIL") is None:
            raise ProcessError(f"{VARIABLE} is set, and Pillow is missing; run `pip install 'postback[worker,ocr]'`")
        program = shutil.which("tesseract")
        if program is None:
            raise ProcessError(
                f"{VARIABLE} is set, and the program tesseract is missing; "
                "install it (Debian: apt-get install tesseract-ocr), or unset the variable"
            )
        listed = _LISTED.search(_output_of(program, "--list-langs"))
        if listed is None:
            raise ProcessError(f"{program} does not list its languages; install tesseract 5 or newer")
        known = listed[2].split()
        for language in languages.split("+"):
            if language not in known:
                package = f"tesseract-ocr-{language.rpartition('/')[2].replace('_', '-').lower()}"
                raise ProcessError(
                    f"{VARIABLE} names {language}, and tesseract has data for {_shown(known)} only; "
                    f"install the data (Debian: apt-get install {package}), or correct the variable"
                )
        return cls(program, listed[1], tuple(_LIBRARY.findall(_output_of("ldd", program))))

    def start(self, languages: str, seconds: float) -> subprocess.Popen[bytes]:
        """Start the program, which reads a TIFF from its input and writes the pages' texts. Raises OSError."""
        command = [self.program, "-", "-", "--tessdata-dir", self.data, "-l", languages, "--psm", "3"]
        return fenced(command, (self.program, self.data, *self.libraries, _LOADERS_CACHE), seconds)


def _shown(languages: Sequence[str]) -> str:
    """Return the first eight languages as one phrase, which shows an operator how languages are named."""
    shown, more = languages[:_LANGUAGES_SHOWN], len(languages) - _LANGUAGES_SHOWN
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "") if shown else "no language"


def _output_of(*command: str) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=_QUERY_SECONDS, check=False, env=_environment(),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProcessError(f"{command[0]} cannot be run ({type(error).__name__}); install it again") from None
    return done.stdout.decode(errors="replace")


def _environment() -> dict[str, str]:
    """Return the environment without LD_PRELOAD, which vLLM sets for its own processes.

    The variable would make ldd leave out a library that tesseract loads, and a fenced program fail at its start.
    """
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def fenced(command: Sequence[str], readable: Iterable[str], seconds: float) -> subprocess.Popen[bytes]:
    """Start a program that may read only these files and folders, and reach only its pipes. Raises OSError.

    The program ends with this process, however this process ends. If the kernel cannot ensure this, an alarm ends the
    program a second after `seconds`. The program inherits this process's address-space limit.
    """
    starter = os.getpid()

    def fence() -> None:
        end_with(starter)
        limits = {
            resource.RLIMIT_CPU: ceil(seconds),
            resource.RLIMIT_FSIZE: 0,
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_NOFILE: _OPEN_FILES,
        }
        for limit, most in limits.items():
            resource.setrlimit(limit, (most, most))
        signal.setitimer(signal.ITIMER_REAL, seconds + _ALARM_GRACE_SECONDS)
        confine(readable, may_execute=True)

    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**_environment(), "OMP_THREAD_LIMIT": "1"}, preexec_fn=fence,
    )  # fmt: skip
