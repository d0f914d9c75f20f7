"""An HTTP peer answers if it says something that a client can use; silence counts from the first open question.

A Redis that several settings name is asked once.
"""

from __future__ import annotations

from threading import Event, Semaphore
from threading import enumerate as enumerate_threads

import pytest
from pydantic import SecretStr

from telemetry.clock import SystemClock
from telemetry.hand_clock import HandClock
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
    peers, before = PeerWatch(Metrics(), SystemClock()), set(enumerate_threads())
    peers.watch_redis(*urls)
    begun = [thread for thread in enumerate_threads() if thread not in before and thread.name == "peer-redis"]
    peers.close()
    for thread in begun:
        thread.join()
    return len(begun)


class Watched:
    """A watch of one peer, whose answers wait for `answers`."""

    def __init__(self, clock: HandClock) -> None:
        self.metrics, self.answers, self._asked = Metrics(), Event(), Semaphore(0)
        self._watch = PeerWatch(self.metrics, clock, ask_seconds=0.001)
        self._watch.watch("store", self._ask)

    def _ask(self) -> None:
        self._asked.release()
        self.answers.wait()

    def asked(self, times: int) -> None:
        """Wait until so many questions were asked."""
        for _ in range(times):
            assert self._asked.acquire(timeout=60)

    def stop(self) -> None:
        """Ask no more, and wait until the last question has its answer."""
        self._watch.close()
        for thread in enumerate_threads():
            if thread.name == "peer-store":
                thread.join(60)

    @property
    def silent_seconds(self) -> float | None:
        """The metric."""
        return self.metrics.registry.get_sample_value("postback_peer_silent_seconds", {"peer": "store"})


def test_a_peer_is_silent_from_the_first_question_that_it_does_not_answer() -> None:
    clock = HandClock()
    watched = Watched(clock)
    watched.asked(1)
    clock.sleep(31)
    assert watched.silent_seconds == 31
    watched.answers.set()
    watched.asked(2)
    watched.stop()
    assert watched.silent_seconds == 0


def test_a_process_that_was_frozen_and_asked_nothing_accuses_no_peer() -> None:
    clock = HandClock()
    watched = Watched(clock)
    watched.answers.set()
    watched.asked(3)
    watched.stop()
    clock.sleep(300)
    assert watched.silent_seconds == 0
