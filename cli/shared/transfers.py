"""Uploads to a gateway, which a later run continues, and downloads, with progress bars."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cli.shared.errors import BAD_INPUT, fail, say
from cli.shared.progress import INTERRUPTED, Counting, counting

if TYPE_CHECKING:
    from postback_client import HttpClient

_GATEWAY = "the gateway"


@contextmanager
def uploading(file: Path, purpose: str) -> Iterator[tuple[Path | None, Counting]]:
    """Yield the place of the upload's state, and a bar that counts bytes. Raises OSError if the file is missing.

    Ctrl-C ends the command, and leaves the state to the next run.
    """
    state = _state_of(file, purpose)
    with counting("uploaded bytes", file.stat().st_size, awaits=_GATEWAY) as progress:
        try:
            yield state, progress
        except KeyboardInterrupt:
            progress.bar.stop()
            if state is not None and state.exists():
                say("stopped; the same command goes on with the upload, within an hour of its beginning")
            raise typer.Exit(INTERRUPTED) from None


def download_to(client: HttpClient, file_id: str, option: str, path: Path, again: str) -> None:
    """Download a file of the gateway to the path that an option names. The path has the old content until the end.

    A full disk ends the command with a message; `again` is the command that downloads the file once there is space.
    """
    size = client.files.retrieve(file_id).bytes
    with counting(f"bytes for {option}", size, awaits=_GATEWAY) as progress:
        try:
            client.files.download(file_id, path, on_bytes=progress)
        except OSError as error:
            progress.bar.stop()
            had = f"{progress.done} of {size} bytes came, and none is kept"
            raise fail(f"{option} {path}: {error.strerror}; {had}; free space there, then run `{again}`") from None


@contextmanager
def files_told() -> Iterator[None]:
    """End the command if one of the caller's files cannot be read."""
    try:
        yield
    except OSError as error:
        raise fail(f"{error.filename}: {error.strerror}", BAD_INPUT) from None


def _state_of(file: Path, purpose: str) -> Path | None:
    """Return the place of the upload's state, by the XDG Base Directory Specification; None if it is not writable."""
    name = hashlib.sha256(f"{file.resolve()}\n{purpose}".encode("utf-8", "surrogateescape")).hexdigest()[:32]
    try:
        base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        folder = Path(base) / "postback" / "uploads"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError means that the user has no home
        return None
    return folder / f"{name}.json" if os.access(folder, os.W_OK) else None
