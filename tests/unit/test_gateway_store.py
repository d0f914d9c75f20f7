"""The store's writes and reads, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, select
from sqlalchemy.exc import DBAPIError

from gateway.store.examine import examine_store
from gateway.store.meta import set_value, store_id, value_of
from gateway.store.store import Store, StoreAway
from gateway.store.tables import idempotency, meta
from gateway.store.text import storable, to_json
from tests.postgres_server import PostgresServer


def together(store: Store, *changes: Callable[[Connection], object]) -> list[Future[object]]:
    """Submit changes while the writer is busy, so that they share one transaction."""
    go = threading.Event()
    held = store.submit(lambda _: go.wait(30))
    submitted = [store.submit(change) for change in changes]
    go.set()
    held.result()
    return submitted


def put(name: str, value: str = "v") -> Callable[[Connection], None]:
    return lambda connection: set_value(connection, name, value)


def fail(connection: Connection) -> None:
    set_value(connection, "failed", "v")
    raise KeyError("mine")


def double(connection: Connection) -> None:
    for _ in range(2):
        connection.execute(meta.insert().values(name="double", value="v"))


def names(store: Store) -> set[str]:
    found = set(store.read_now(lambda connection: connection.scalars(select(meta.c.name)).all()))
    return found - {"store"}


def test_a_change_that_raises_takes_back_its_own_rows_only(store: Store) -> None:
    first, failing, last = together(store, put("a"), fail, put("b"))
    assert (first.result(), last.result()) == (None, None)
    with pytest.raises(KeyError, match="mine"):
        failing.result()
    assert names(store) == {"a", "b"}


def test_a_change_that_breaks_a_rule_of_its_table_takes_back_its_own_rows_only(store: Store) -> None:
    first, failing, last = together(store, put("a"), double, put("b"))
    assert (first.result(), last.result()) == (None, None)
    with pytest.raises(DBAPIError):
        failing.result()
    assert names(store) == {"a", "b"}


def test_a_change_cannot_end_the_writer(store: Store) -> None:
    def leave(connection: Connection) -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        store.submit(leave).result(30)
    store.write_now(put("a"))
    assert names(store) == {"a"}


def test_a_waiter_that_gives_up_does_not_end_the_writer(store: Store) -> None:
    async def give_up() -> None:
        task = asyncio.create_task(store.write(put("a")))
        await asyncio.sleep(0)
        task.cancel()
        await store.write(put("b"))

    asyncio.run(give_up())
    assert {"b"} <= names(store) <= {"a", "b"}


def test_two_stores_of_one_database_never_write_at_once(store: Store, store_url: str) -> None:
    def count(connection: Connection) -> None:
        set_value(connection, "count", str(int(value_of(connection, "count") or 0) + 1))

    other = Store.open(store_url)
    both = [each.submit(count) for _ in range(100) for each in (store, other)]
    for future in both:
        future.result()
    other.close()
    assert store.read_now(lambda connection: value_of(connection, "count")) == "200"


def test_a_read_goes_on_beside_a_write(store: Store) -> None:
    store.write_now(put("a"))
    go = threading.Event()
    store.submit(put("b"))
    held = store.submit(lambda _: go.wait(30))
    assert names(store) >= {"a"}
    go.set()
    held.result()


def test_every_copy_of_a_store_has_its_uuid(store: Store, store_url: str) -> None:
    again = Store.open(store_url)
    assert again.read_now(store_id) == store.read_now(store_id)
    again.close()


@pytest.mark.parametrize(
    "url", ["", "nothing", "mysql://host/name", "sqlite:////no/such/folder/file.db", "sqlite://x/y"]
)
def test_a_url_that_cannot_be_used_is_refused_in_words(url: str) -> None:
    with pytest.raises(StoreAway, match="the store"):
        Store.open(url)


@pytest.mark.postgresql
@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", "EUC_JP"])
@pytest.mark.parametrize("use", [Store.open, Store.upgrade, examine_store], ids=["open", "upgrade", "examine"])
def test_a_database_with_another_encoding_is_refused_with_its_name_and_the_fix(
    postgres: PostgresServer, encoding: str, use: Callable[[str], object]
) -> None:
    with pytest.raises(StoreAway, match=rf"has the encoding {encoding}; create one with ENCODING 'UTF8'"):
        use(postgres.new_database(encoding))


@pytest.mark.postgresql
def test_the_environments_encoding_of_clients_does_not_matter(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "SQL_ASCII")
    store = Store.open(postgres.new_database())
    store.write_now(put("\N{SNOWMAN}"))
    assert names(store) == {"\N{SNOWMAN}"}
    store.close()


def test_any_text_can_be_stored_and_found(store: Store) -> None:
    rows = idempotency.c

    @given(st.text(alphabet=st.characters(codec=None), min_size=1, max_size=300), st.binary(max_size=64))
    def stored(key: str, response: bytes) -> None:
        row = {"tenant": "t", "key": key, "fingerprint": b"", "status": 1, "response": response, "created_at": 1}

        def replace(connection: Connection) -> tuple[str, bytes]:
            connection.execute(idempotency.delete())
            connection.execute(idempotency.insert(), row)
            found = connection.execute(select(rows.key, rows.response).where(rows.key == key)).one()
            return found.key, found.response

        assert store.write_now(replace) == (storable(key)[:256], response)

    stored()


@given(st.dictionaries(st.text(alphabet=st.characters(codec=None)), st.text(alphabet=st.characters(codec=None))))
def test_json_has_no_nul_and_no_lone_surrogate(value: object) -> None:
    text = to_json(value)
    assert text.encode()
    assert "\\u0000" not in text
