"""A refused request about files or batches."""

from __future__ import annotations


class Declined(Exception):  # noqa: N818 - it names what happened
    """The request is refused with this HTTP status, OpenAI's `code` and `param`, and a message for people."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param


def unknown(kind: str, identifier: str) -> Declined:
    """Return the refusal of an id that does not exist or is another tenant's: a client cannot tell which."""
    return Declined(404, f"{kind}_not_found", f"No such {kind}: {identifier[:80]!r}.", f"{kind}_id")
