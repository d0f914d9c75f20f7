"""Makes an archive of Kafka's classes: JVMs map it instead of parsing jars (JEP 350), and start in half the time.

`python -m cli.devkit.class_archive` installs Java, fetches the jars and makes the archive in advance. A JVM of another
release ignores the archive.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from cli.devkit.broker import Broker
from cli.devkit.kafka.cluster import SMALL_JVM
from cli.devkit.kafka.errors import BrokerError
from cli.devkit.kafka.jars import class_archive, java


def make_class_archive() -> None:
    """Run a broker once, whose JVM archives its classes at its end; do nothing if the archive exists.

    The archive gets its name only when it is complete. Raises the errors that `cli.devkit.kafka.errors` lists.
    """
    archive = class_archive()
    if archive.is_file():
        return
    with tempfile.TemporaryDirectory(prefix=f"{archive.stem}.", dir=archive.parent) as folder:
        unfinished = Path(folder) / archive.name
        with Broker.start(data=Path(folder) / "data", jvm=(*SMALL_JVM, f"-XX:ArchiveClassesAtExit={unfinished}")):
            pass
        if unfinished.is_file():  # a JVM that takes too long to end is killed; brokers start without an archive too
            unfinished.replace(archive)


def _main() -> int:
    """Get Java and the jars and make the archive, or print the error."""
    try:
        java()
        make_class_archive()
    except BrokerError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
