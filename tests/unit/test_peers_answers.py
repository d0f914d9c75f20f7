"""An HTTP peer answers if it says something that a client can use, and also if it refuses the question."""

from __future__ import annotations

import pytest

from telemetry.peers import http_answers
from tests.http_handler import Answering, handling


@pytest.mark.parametrize(
    ("status", "body", "raised"),
    [
        (200, b'{"data": []}', None),
        (401, b"no key", None),
        (404, b"no such path", None),
        (200, b'{"data": [{"mess', ValueError),
        (200, b"", ValueError),
        (500, b'{"data": []}', OSError),
    ],
)
def test_a_server_that_answers_garbage_counts_as_silent(
    status: int, body: bytes, raised: type[Exception] | None
) -> None:
    class Handler(Answering):
        def do_GET(self) -> None:
            self.answer(status, body)

    with handling(Handler) as url:
        if raised is None:
            http_answers(f"{url}/models")
        else:
            with pytest.raises(raised):
                http_answers(f"{url}/models")
