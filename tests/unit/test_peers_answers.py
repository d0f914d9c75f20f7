"""A Redis is asked once. An HTTP peer answers if it says something that a client can use, or refuses the question."""

from __future__ import annotations

from threading import enumerate as threads

import pytest
from pydantic import SecretStr

from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from telemetry.peers import PeerWatch, http_answers
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


def test_settings_that_name_one_redis_ask_it_once_and_another_one_is_asked_too() -> None:
    cache, deltas = SecretStr("redis://127.0.0.1:9/0"), SecretStr("redis://127.0.0.1:9/1")
    for urls, asking in (((None, None), 0), ((cache, None), 1), ((cache, SecretStr(cache.get_secret_value())), 1)):
        assert _asking(*urls) == asking
    assert _asking(cache, deltas) == 2


def _asking(*urls: SecretStr | None) -> int:
    """Return the number of threads that ask a Redis."""
    peers, before = PeerWatch(Metrics(), SystemClock()), set(threads())
    peers.watch_redis(*urls)
    begun = [thread for thread in threads() if thread not in before and thread.name == "peer-redis"]
    peers.close()
    for thread in begun:
        thread.join()
    return len(begun)
