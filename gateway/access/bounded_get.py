"""A GET of one JSON document from a server of the operator's, with bounds of time and size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from telemetry.clock import Clock, Deadline

if TYPE_CHECKING:
    import requests


class NotRead(Exception):  # noqa: N818 - named after the event
    """The document was not read. The text gives the reason, as a phrase that follows the server's name."""


def get_json(session: requests.Session, url: str, clock: Clock, *, seconds: float, most_bytes: int) -> Any:
    """Return a document. Blocks until the whole answer has come, for little more than `seconds`. Raises NotRead."""
    import requests  # most gateways ask no such server
    from urllib3.exceptions import HTTPError

    deadline, content = Deadline.after(clock, seconds), bytearray()
    try:
        with session.get(url, timeout=seconds, allow_redirects=False, stream=True) as answer:
            if answer.status_code != 200:
                raise NotRead(f"it answers with status {answer.status_code}")
            while chunk := answer.raw.read1(8192, decode_content=True):  # returns what has arrived
                content += chunk
                if len(content) > most_bytes or deadline.passed:
                    raise NotRead("its answer is too large or too slow")
        return from_json(bytes(content))
    except (requests.RequestException, HTTPError, OSError, ValueError) as error:
        raise NotRead(f"the request failed ({type(error).__name__})") from None
