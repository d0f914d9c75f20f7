"""Statements over many rows: they write and find any texts on both databases, and read no whole table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, event, select

from gateway.access.quotas import release_answered
from gateway.batches.counting import counting
from gateway.store.dialects import insert, insert_new, pair_in, write_rows
from gateway.store.store import Store
from gateway.store.tables import jobs
from gateway.store.text import storable
from gateway.view.records import ResultRecord
from gateway.view.retention import Retention
from gateway.view.writing import write_results
from gateway.webhooks.fan_out import fanning_out
from schemas.codec import write_result
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.topics import Topics
from telemetry.hand_clock import HandClock
from tests.drawn import drawn

ANY_TEXT = st.text(st.characters(codec=None), max_size=8)
BATCH = f"batch_{'0' * 32}"


def job(tenant: str, job_id: str, **others: Any) -> dict[str, Any]:
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

    rows = [job("acme", key, metadata=value, result=result, custom_id=name) for key, value in found.items()]
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
    write(store, [job(*pair) for pair in kept])
    asked = others | data.draw(st.sets(st.sampled_from(sorted(kept))))
    columns = (jobs.c.tenant, jobs.c.job_id)
    found = store.read_now(
        lambda connection: connection.execute(select(*columns).where(pair_in(connection, columns, asked))).all()
    )
    assert sorted(map(tuple, found)) == sorted(kept & asked)


@contextmanager
def statements() -> Iterator[dict[str, Any]]:
    """The statements that are executed, each with the parameters of one row."""
    seen: dict[str, Any] = {}

    def note(_connection: Any, _cursor: Any, statement: str, values: Any, _context: Any, many: bool) -> None:
        seen[statement] = values[0] if many else values

    event.listen(Engine, "before_cursor_execute", note)
    yield seen
    event.remove(Engine, "before_cursor_execute", note)


def record(job_id: str) -> ResultRecord:
    found = Result(job_id=job_id, outcome=Outcome.SUCCEEDED, text="", created_at=1)
    return ResultRecord("acme", found, write_result(found), None, 1, has_callback=False)


FEW = ("SCAN writers", "VIRTUAL TABLE", "CONSTANT ROW")
"""Scans that a plan may contain: of tables with few rows, and of parameters that SQLite reads as a table."""


def test_neither_a_page_of_results_nor_the_retention_reads_a_whole_table(tmp_path: Path) -> None:
    clock = HandClock(10**9)
    hooks = (counting(clock), release_answered, fanning_out(Topics(), clock))

    def page(connection: Connection) -> None:
        stored = write_results(connection, [record("a"), record("b"), record(f"{BATCH}.0")])
        for hook in hooks:
            hook(connection, stored)

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
