"""Acceptance of jobs, and idempotency keys, on a real store."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select

from gateway.accept.idempotency import KeyReused, StoredAnswer, once
from gateway.accept.jobs import JobExists, NewJob, accept_jobs
from gateway.access import Principal
from gateway.access.principal import DEFAULT_SCOPES
from gateway.store.store import Store
from gateway.store.tables import jobs, outbox
from schemas.topics import Topics

PRINCIPAL = Principal("acme", "key:1", "api_key", DEFAULT_SCOPES)


def accept(store: Store, *ids: str) -> None:
    new = [NewJob(job_id, "/v1/jobs", b"{}") for job_id in ids]
    store.submit(lambda connection: accept_jobs(connection, PRINCIPAL, new, Topics())).result()


def ids(store: Store) -> set[str]:
    return set(store.read_now(lambda connection: connection.scalars(select(jobs.c.job_id)).all()))


def records(store: Store) -> int:
    return store.read_now(lambda connection: connection.scalar(select(func.count()).select_from(outbox)) or 0)


def test_an_accepted_job_has_a_row_and_a_record(store: Store) -> None:
    accept(store, "one")
    accept(store, "two", "three")
    assert ids(store) == {"one", "two", "three"}
    assert records(store) == 3


@pytest.mark.parametrize("again", [("one",), ("two", "one")])
def test_a_job_with_a_taken_id_is_refused_with_all_of_its_request(store: Store, again: tuple[str, ...]) -> None:
    accept(store, "one")
    with pytest.raises(JobExists, match="'one'"):
        accept(store, *again)
    assert ids(store) == {"one"}
    assert records(store) == 1


def test_a_repeat_with_the_same_key_gets_the_first_answer_and_does_nothing(store: Store) -> None:
    made: list[int] = []

    def answer() -> StoredAnswer:
        made.append(1)
        return StoredAnswer(200, b"answer %d" % len(made))

    def ask(fingerprint: bytes) -> StoredAnswer:
        return store.submit(lambda connection: once(connection, "acme", "key", fingerprint, answer)).result()

    assert ask(b"a") == ask(b"a") == StoredAnswer(200, b"answer 1")
    with pytest.raises(KeyReused):
        ask(b"b")
    assert made == [1]


def test_work_that_fails_leaves_its_key_free(store: Store) -> None:
    def fail() -> StoredAnswer:
        raise ValueError

    with pytest.raises(ValueError):
        store.submit(lambda connection: once(connection, "acme", "key", b"a", fail)).result()
    answer = StoredAnswer(200, b"")
    assert store.submit(lambda connection: once(connection, "acme", "key", b"b", lambda: answer)).result() == answer
