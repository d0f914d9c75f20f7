"""The errors of the keyring; the package's docstring draws their tree."""

from __future__ import annotations

from pathlib import Path


class KeyringError(Exception):
    """The keyring cannot be used."""


class KeyringMissing(KeyringError):  # noqa: N818 - the tree names events
    """There is no keyring at this path."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"there is no keyring at {path}: make one with `postback keys init`, or set POSTBACK_KEYRING")


class KeyringExists(KeyringError):  # noqa: N818
    """There is a keyring at this path already."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} exists and is left as it is: rotate its keys with `postback keys rotate`")


class KeyringUnreadable(KeyringError):  # noqa: N818
    """The file cannot serve as a keyring."""

    def __init__(self, path: Path, problem: str, fix: str) -> None:
        super().__init__(f"keyring {path}: {problem}; {fix}")


class KeyringFormatOld(KeyringError):  # noqa: N818
    """The change needs format 2."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"keyring {path}: has format 1, and this change needs format 2; run `postback keys migrate`")


class KeyringRefused(KeyringError):  # noqa: N818
    """The change makes no sense for these keys; the text gives the reason."""
