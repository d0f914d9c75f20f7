"""The gateway's store on SQLite and on PostgreSQL: writes, reads, revisions, retention, and large statements."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, Table, create_engine, func, inspect, select, text
from sqlalchemy.exc import DBAPIError, OperationalError

from gateway.accept.outbox import put_record
from gateway.access.quotas import Work, queued_work, reserve
from gateway.access.tenant_settings import TenantSettings
from gateway.store import schema
from gateway.store.dialects import insert, insert_new, pair_in, storable, storable_json, write_rows
from gateway.store.engine import cause_of
from gateway.store.meta import set_value, store_id, value_of
from gateway.store.schema import OtherSchema, examine_store
from gateway.store.store import Store, StoreAway
from gateway.store.tables import events, idempotency, job_attempts, jobs, meta, outbox
from gateway.store.writer import Writer, _CommitUnanswered
from gateway.view.records import ResultRecord
from gateway.view.retention import TOGETHER, Retention
from gateway.view.stored_jobs import find_job
from gateway.view.writing import write_results
from gateway.webhooks.fan_out import fanning_out
from schemas.codec import write_result
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.topics import Topics
from telemetry.hand_clock import HandClock
from tests.drawn import drawn
from tests.postback_command import environment_of, postback_here
from tests.postgres_server import PostgresServer
from tests.unit.batch_rig import put_batch
from tests.unit.gateway_rig import empty_store, statements


def together(store: Store, *changes: Callable[[Connection], object]) -> list[Future[object]]:
    """Submit changes while the writer is busy, so that they share one transaction."""
    go = threading.Event()
    held = store.submit(lambda _: go.wait(30))
    submitted = [store.submit(change) for change in changes]
    go.set()
    held.result()
    return submitted


VALUES = (b"one", b"refused", b"two", b"refused", b"three")


def put(name: str, value: str = "v") -> Callable[[Connection], None]:
    return lambda connection: set_value(connection, name, value)


def fail(connection: Connection) -> None:
    set_value(connection, "failed", "v")
    raise KeyError("mine")


def names(store: Store) -> set[str]:
    found = set(store.read_now(lambda connection: connection.scalars(select(meta.c.name)).all()))
    return found - {"store", "schema"}


def test_a_change_that_raises_takes_back_its_own_rows_only_and_cannot_end_the_writer(store: Store) -> None:
    def double(connection: Connection) -> None:
        for _ in range(2):
            connection.execute(meta.insert().values(name="double", value="v"))

    def leave(connection: Connection) -> None:
        raise SystemExit

    first, failing, breaking, last = together(store, put("a"), fail, double, put("b"))
    assert (first.result(), last.result()) == (None, None)
    with pytest.raises(KeyError, match="mine"):
        failing.result()
    with pytest.raises(DBAPIError):
        breaking.result()
    with pytest.raises(SystemExit):
        store.submit(leave).result(30)
    store.write_now(put("c"))
    assert names(store) == {"a", "b", "c"}


def test_a_refused_change_hands_no_row_to_the_relay(store: Store) -> None:
    handed: list[tuple[int, bytes]] = []
    store.on_commit(lambda rows: handed.extend((row["number"], row["value"]) for row in rows))

    def put_one(value: bytes, connection: Connection) -> None:
        put_record(connection, "job_control", b"k", value)
        if value == b"refused":
            raise KeyError

    wait = [future.exception(30) for future in together(store, *(partial(put_one, each) for each in VALUES))]
    assert [error is not None for error in wait] == [value == b"refused" for value in VALUES]
    store.write_now(lambda _: None)
    rows = store.read_now(lambda connection: connection.execute(select(outbox).order_by("number")).all())
    assert handed == [(row.number, row.value) for row in rows]
    assert [value for _, value in handed] == [value for value in VALUES if value != b"refused"]


def test_a_group_is_refused_if_the_server_ends_while_its_commits_stay_unanswered(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer would otherwise ask without a pause until the server is back, and keep its requests waiting."""
    tries: list[None] = []
    lost = OperationalError("COMMIT", None, OSError(), connection_invalidated=True)

    def attempted(_writer: Writer, _runs: object) -> list[object]:
        tries.append(None)
        if len(tries) == 10:
            raise SystemExit
        raise lost if len(tries) > 2 else _CommitUnanswered([None], lost)

    with monkeypatch.context() as patched:
        patched.setattr(Writer, "_attempt", attempted)
        patched.setattr(Writer, "_is_committed", lambda _: False)
        with pytest.raises(StoreAway, match="did not take a change: it cannot be reached"):
            store.write_now(put("a"))
    store.write_now(put("b"))
    assert names(store) == {"b"}


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
    assert other.read_now(store_id) == store.read_now(store_id)
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


def test_a_url_that_cannot_be_used_is_refused_in_words() -> None:
    for url in ("", "nothing", "mysql://host/name", "sqlite:////no/such/folder/file.db", "sqlite://x/y"):
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
    text = storable_json(value)
    assert text.encode()
    assert "\\u0000" not in text


# -- revisions ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(store_url: str) -> Iterator[Engine]:
    made = create_engine(store_url)
    yield made
    made.dispose()


def test_an_upgrade_runs_the_statements_that_the_store_lacks_once(
    store_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store.open(store_url).close()
    monkeypatch.setattr(schema, "UPGRADES", (("ALTER TABLE tenants ADD COLUMN region TEXT",),))
    with pytest.raises(OtherSchema, match=r"schema 1, older than this program's 2; .*`postback store upgrade`"):
        Store.open(store_url)
    assert [Store.upgrade(store_url) for _ in range(2)] == [(1, 2), (2, 2)]
    Store.open(store_url).close()
    assert "region" in {column["name"] for column in inspect(engine).get_columns("tenants")}


def test_the_outbox_never_gives_a_number_twice(store_url: str) -> None:
    store = Store.open(store_url)
    row = {"size": 0, "topic": "t", "headers": b"[]"}
    for number in (1, 2):
        store.write_now(lambda connection: connection.execute(outbox.insert(), row))
        found = store.read_now(lambda connection: connection.execute(outbox.select()).one())
        assert found.number == number
        store.write_now(lambda connection: connection.execute(outbox.delete()))
    store.close()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("UPDATE meta SET value = '0' WHERE name = 'schema'", "older than this program.*postback store upgrade"),
        ("UPDATE meta SET value = '9' WHERE name = 'schema'", "newer than this program"),
        ("DELETE FROM meta", "another program"),
    ],
)
def test_a_store_of_another_schema_is_refused_with_the_fix(
    store_url: str, engine: Engine, change: str, reason: str
) -> None:
    Store.open(store_url).close()
    with engine.begin() as connection:
        connection.execute(text(change))
    with pytest.raises(OtherSchema, match=reason):
        Store.open(store_url)


def test_the_command_upgrades_an_empty_database_once_and_refuses_a_newer_one(store_url: str, engine: Engine) -> None:
    env = environment_of(POSTBACK_STORE__URL=store_url)
    first, second = (postback_here("store", "upgrade", env=env) for _ in range(2))
    with engine.begin() as connection:
        connection.execute(text("UPDATE meta SET value = '9' WHERE name = 'schema'"))
    refused = postback_here("store", "upgrade", env=env)
    assert [done.returncode for done in (first, second, refused)] == [0, 0, 1]
    assert "from schema nothing to 1" in first.stderr
    assert "the store is at schema 1" in second.stderr
    assert "newer than this program" in refused.stderr


# -- retention ---------------------------------------------------------------------------------------------------------


DAY_MS = 24 * 3600 * 1000
NOW_MS = 100 * DAY_MS


def fill(store: Store) -> None:
    """Write rows that are older than they are kept, and younger ones."""

    def job(job_id: str, created_days: int, finished_days: int | None) -> dict[str, Any]:
        finished_at = None if finished_days is None else NOW_MS - finished_days * DAY_MS
        return row_of("acme", job_id, created_at=NOW_MS - created_days * DAY_MS, finished_at=finished_at)

    old_jobs = [job(f"old{number}", 31, 31) for number in range(TOGETHER + 10)]
    others = [job("young", 31, 29), job("waiting", 37, None), job("lost", 39, None)]
    old, young = NOW_MS - 31 * DAY_MS, NOW_MS - 29 * DAY_MS
    told = {"tenant": "acme", "type": "t", "object_id": "o", "data": b""}
    attempt = {"topic_partition": 0, "tenant": "acme", "job_id": "j", "webhook_id": "w", "details": {}}
    key = {"tenant": "acme", "fingerprint": b"", "status": 200, "response": b""}
    keys = {"old": NOW_MS - 3 * DAY_MS, "young": NOW_MS - DAY_MS - 1}
    rows: list[tuple[Table, list[dict[str, Any]]]] = [
        (jobs, [*old_jobs, *others]),
        (events, [{**told, "number": 1, "at": old}, {**told, "number": 2, "at": young}]),
        (job_attempts, [{**attempt, "topic_offset": 1, "at": old}, {**attempt, "topic_offset": 2, "at": young}]),
        (idempotency, [{**key, "key": name, "created_at": at} for name, at in keys.items()]),
    ]
    for table, values in rows:
        store.write_now(lambda connection, table=table, values=values: connection.execute(table.insert(), values))  # type: ignore[misc]


def count(store: Store, table: Table) -> int:
    return store.read_now(lambda connection: connection.scalar(select(func.count()).select_from(table)) or 0)


def test_old_rows_are_removed_and_young_ones_stay(store: Store) -> None:
    fill(store)
    retention = Retention(store, 30, HandClock(NOW_MS / 1000))
    assert retention.remove_old() == TOGETHER + 10 + 1 + 1 + 1 + 1
    kept = set(store.read_now(lambda connection: connection.scalars(select(jobs.c.job_id)).all()))
    assert kept == {"young", "waiting"}
    assert [count(store, table) for table in (events, job_attempts, idempotency)] == [1, 1, 1]
    assert retention.remove_old() == 0


def test_an_unfinished_job_that_is_removed_gives_its_quota_back(store: Store) -> None:
    """Among more jobs than one step removes, whose ids and whose ages have opposite orders."""
    some = TOGETHER + 10

    def accept(connection: Connection) -> None:
        reserve(connection, "acme", TenantSettings(queued_lines=some), Work(some, 50 * some))
        lost = [
            row_of("acme", f"lost{number:04}", created_at=NOW_MS - 39 * DAY_MS - number, reserved_tokens=50)
            for number in range(some)
        ]
        old = [row_of("acme", f"old{number}", finished_at=NOW_MS - 31 * DAY_MS) for number in range(some)]
        connection.execute(jobs.insert(), lost)
        connection.execute(jobs.insert(), old)

    store.write_now(accept)
    assert Retention(store, 30, HandClock(NOW_MS / 1000)).remove_old() == 2 * some
    assert store.read_now(lambda connection: queued_work(connection, "acme")) == Work(0, 0)


class RefusingError(Exception):
    """A driver's error with a code."""

    def __init__(self, **code: object) -> None:
        super().__init__("secret")
        vars(self).update(code)


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ({"sqlite_errorcode": 8}, "it is read-only"),
        ({"sqlite_errorcode": 778}, "its disk fails"),
        ({"sqlite_errorcode": 13}, "its disk is full"),
        ({"sqlite_errorcode": 99}, "SQLite's error 99"),
        ({"sqlstate": "25006"}, "it is read-only, as a standby is"),
        ({"sqlstate": "53100"}, "its disk is full"),
        ({"sqlstate": "57P03"}, "it is stopping or starting"),
        ({"sqlstate": "XX000"}, "PostgreSQL's error XX000"),
        ({"sqlstate": None}, "it cannot be reached"),
    ],
)
def test_the_text_of_a_failure_names_its_cause(code: dict[str, object], cause: str) -> None:
    assert cause_of(OperationalError("INSERT", {}, RefusingError(**code))) == cause


def test_a_store_that_is_read_only_says_so(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    file.write_bytes(empty_store())
    store = Store.open(f"sqlite:///{file}")
    store.write_now(lambda connection: connection.exec_driver_sql("PRAGMA query_only=ON") and None)
    with pytest.raises(StoreAway, match="did not take a change: it is read-only"):
        store.write_now(lambda connection: set_value(connection, "a", "b"))
    assert store.problem(0.0) == "the store did not take a change: it is read-only"
    store.close()


# -- statements over many rows -----------------------------------------------------------------------------------------


ANY_TEXT = st.text(st.characters(codec=None), max_size=8)
BATCH = f"batch_{'0' * 32}"


def row_of(tenant: str, job_id: str, **others: Any) -> dict[str, Any]:
    base = {"url": "u", "status": "succeeded", "created_at": 1, "finished_at": None, "metadata": {}, "result": None}
    return {"tenant": tenant, "job_id": job_id, **base, **others}


def write(store: Store, rows: list[dict[str, Any]]) -> int:
    return store.write_now(lambda connection: write_rows(connection, insert(connection, jobs), rows))


def clear(store: Store) -> None:
    store.write_now(lambda connection: connection.execute(jobs.delete()))


@settings(max_examples=drawn(25), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(ANY_TEXT.map(storable), st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=2), min_size=1, max_size=5),
    st.none() | st.binary(max_size=8),
    st.none() | st.text(st.characters(codec=None), min_size=510, max_size=514),
)
def test_rows_written_together_equal_rows_written_one_by_one(
    store: Store, found: dict[str, dict[str, str]], result: bytes | None, name: str | None
) -> None:
    def written() -> list[tuple[Any, ...]]:
        ordered = select(jobs).order_by(jobs.c.job_id)
        return store.read_now(lambda connection: [tuple(each) for each in connection.execute(ordered)])

    rows = [row_of("acme", key, metadata=value, result=result, custom_id=name) for key, value in found.items()]
    clear(store)
    for row in rows:
        store.write_now(lambda connection, row=row: connection.execute(jobs.insert(), row))  # type: ignore[misc]
    one_by_one = written()
    clear(store)
    assert write(store, rows) == len(rows)
    assert written() == one_by_one
    new = {**rows[0], "job_id": "another" * 8}
    assert store.write_now(lambda connection: insert_new(connection, jobs, [*rows, new])) == 1
    assert store.write_now(lambda connection: insert_new(connection, jobs, [new])) == 0


@settings(max_examples=drawn(25), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sets(st.tuples(st.sampled_from(["a", "b", "c"]), ANY_TEXT.map(storable)), min_size=1, max_size=9),
    st.sets(st.tuples(st.sampled_from(["a", "b", "c"]), ANY_TEXT.map(storable)), max_size=9),
    st.data(),
)
def test_wanted_pairs_are_found(
    store: Store, kept: set[tuple[str, str]], others: set[tuple[str, str]], data: Any
) -> None:
    clear(store)
    write(store, [row_of(*pair) for pair in kept])
    asked = others | data.draw(st.sets(st.sampled_from(sorted(kept))))
    columns = (jobs.c.tenant, jobs.c.job_id)
    found = store.read_now(
        lambda connection: connection.execute(select(*columns).where(pair_in(connection, columns, asked))).all()
    )
    assert sorted(map(tuple, found)) == sorted(kept & asked)


def record(job_id: str) -> ResultRecord:
    found = Result(job_id=job_id, outcome=Outcome.SUCCEEDED, text="", created_at=1)
    return ResultRecord("acme", found, write_result(found), None, 1, has_callback=False)


FEW = ("SCAN writers", "VIRTUAL TABLE", "CONSTANT ROW")
"""Scans that a plan may contain: of tables with few rows, and of parameters that SQLite reads as a table."""


def test_neither_a_page_of_results_nor_the_retention_reads_a_whole_table(tmp_path: Path) -> None:
    clock = HandClock(10**9)

    def page(connection: Connection) -> None:
        put_batch(connection, BATCH, 2)
        for again in range(2):
            some = [record("a"), record("b"), record(f"{BATCH}.0"), record(f"{BATCH}.{again}")]
            fanning_out(Topics(), clock)(connection, write_results(connection, some))
        find_job(connection, "acme", f"{BATCH}.0")

    def plan(statement: str, values: Any) -> list[str]:
        asked = f"EXPLAIN QUERY PLAN {statement}"
        return store.read_now(lambda connection: [row[3] for row in connection.exec_driver_sql(asked, values)])

    store = Store.open(f"sqlite:///{tmp_path}/store.db")
    with statements() as seen:
        store.write_now(page)
        Retention(store, 30, clock).remove_old()
    plans = {statement: plan(statement, values) for statement, values in seen.items() if "BEGIN" not in statement}
    store.close()
    assert len(plans) > 10
    scans = [step for steps in plans.values() for step in steps if step.startswith("SCAN ")]
    first_by_number = ["SCAN events"]
    assert [step for step in scans if not any(name in step for name in FEW)] == first_by_number
