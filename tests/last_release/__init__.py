"""The last release's source, as an archive: tests run its processes beside this program's.

The repository keeps the archive, because a checkout without history has no earlier commit. After a release, replace the
archive and `COMMIT`:

    git archive REF console devkit gateway operators producers schemas screening telemetry workers | xz -9 \
        > tests/last_release/source.tar.xz

Until there is a release, the archive holds the commit that `COMMIT` names.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

COMMIT = "b493cd8"
_ARCHIVE = Path(__file__).with_name("source.tar.xz")


def unpacked(folder: Path) -> Path:
    """Unpack the source into `folder`, and return it. In PYTHONPATH, the folder precedes the installed program."""
    with tarfile.open(_ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder
