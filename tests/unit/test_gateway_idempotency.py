"""`once` under any interleaving of keys, fingerprints, tenants, failures and two processes: one answer for each key."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import count
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, event, select

from gateway.accept.idempotency import StoredAnswer, once
from gateway.store.store import Store
from gateway.store.tables import tenants
from tests.drawn import drawn

NUMBERS = count()


class Asked(NamedTuple):
    """One request. Its work writes a row, and then fails or answers. If `is_known`, the answer precedes the work."""

    tenant: str
    key: str | None
    fingerprint: bytes
    fails: bool
    is_known: bool
    process: int


REQUESTS = st.lists(
    st.builds(
        Asked,
        st.sampled_from(["acme", "globex"]),
        st.sampled_from(["one", "two", None]),
        st.sampled_from([b"a", b"b"]),
        st.booleans(),
        st.booleans(),
        st.integers(0, 1),
    ),
    min_size=1,
    max_size=14,
)


@pytest.fixture
def stores(store_url: str) -> Iterator[list[Store]]:
    """The stores of two processes over one database."""
    opened = [Store.open(store_url) for _ in range(2)]
    yield opened
    for store in opened:
        store.close()


def submitted(store: Store, asked: Asked, example: int, number: int) -> Future[StoredAnswer]:
    answer = StoredAnswer(200, str(number).encode())
    known = answer if asked.is_known else None

    def change(connection: Connection) -> StoredAnswer:
        def work() -> StoredAnswer:
            connection.execute(tenants.insert(), {"tenant": f"{example}-{number}", "settings": {}, "created_at": 0})
            if asked.fails:
                raise ZeroDivisionError
            return answer

        return once(connection, f"{asked.tenant}-{example}", asked.key, asked.fingerprint, work, known=known)

    return store.submit(change)


def said(future: Future[StoredAnswer]) -> str:
    """The number of the request whose work gave this answer, or the error's name."""
    error = future.exception(60)
    return type(error).__name__ if error is not None else future.result().body.decode()


def made(store: Store, example: int) -> set[str]:
    """The numbers of the example's requests whose rows were committed."""
    rows = store.read_now(lambda connection: connection.scalars(select(tenants.c.tenant)).all())
    return {row.partition("-")[2] for row in rows if row.startswith(f"{example}-")}


@given(REQUESTS)
@settings(max_examples=drawn(25), deadline=None, suppress_health_check=list(HealthCheck))
def test_each_key_has_one_answer_and_one_work(stores: list[Store], requests: list[Asked]) -> None:
    example = next(NUMBERS)
    futures = [submitted(stores[asked.process], asked, example, number) for number, asked in enumerate(requests)]
    answers = [said(future) for future in futures]

    by_key: defaultdict[tuple[str, str | None], list[int]] = defaultdict(list)
    for number, asked in enumerate(requests):
        by_key[asked.tenant, asked.key].append(number)
    done = set[str]()
    for (_, key), numbers in by_key.items():
        winners = {answers[number] for number in numbers} - {"KeyReused", "ZeroDivisionError"}
        done |= winners
        if key is None:
            assert [answers[number] for number in numbers] == [
                "ZeroDivisionError" if requests[number].fails else str(number) for number in numbers
            ]
            continue
        assert len(winners) == any(not requests[number].fails for number in numbers)
        for number in numbers:
            assert answers[number] in allowed(requests[number], requests, winners)
    assert made(stores[0], example) == done


def allowed(asked: Asked, requests: list[Asked], winners: set[str]) -> set[str]:
    """The answers that a request with a key may get.

    A failing request that comes before the winner fails; after the winner, it is answered like any other request.
    """
    of_its_own = {"ZeroDivisionError"} if asked.fails else set[str]()
    for winner in winners:
        same = requests[int(winner)].fingerprint == asked.fingerprint
        of_its_own |= {winner} if same else {"KeyReused"}
    return of_its_own


def test_a_new_key_takes_no_query_if_its_answer_is_known(store_url: str) -> None:
    queries: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        queries.extend([statement] if statement.startswith("SELECT idempotency") else [])

    asked = Asked("acme", "one", b"a", fails=False, is_known=True, process=0)
    store, example = Store.open(store_url), next(NUMBERS)
    event.listen(Engine, "before_cursor_execute", note)
    try:
        first = submitted(store, asked, example, 1).result(60)
        assert queries == []
        assert submitted(store, asked, example, 2).result(60) == first
        assert len(queries) == 1
    finally:
        event.remove(Engine, "before_cursor_execute", note)
        store.close()
