"""The console's queries on both databases, and its lines in the audit."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Connection, insert

from gateway.access import CredentialRefused, Principal, Scope
from gateway.access.sessions import MOST, Sessions
from gateway.door.app import create_app
from gateway.page.figures import read_figures
from gateway.page.routes import page_routes
from gateway.page.undelivered import failed_callbacks
from gateway.store.store import Store
from gateway.store.tables import batches, job_attempts, jobs
from telemetry.audit import Audit
from telemetry.hand_clock import HandClock
from tests.unit.console_browser import signed_in
from tests.unit.console_rows import NOW_MS, attempt_row, batch_row, finished, job_row, put
from tests.unit.gateway_rig import NOW, gateway_rig


def test_both_databases_give_the_same_figures(store: Store) -> None:
    of_jobs = [job_row("acme", "w"), finished("acme", "a"), finished("acme", "b", outcome="failed")]
    of_batches = [batch_row("acme", "batch_1"), batch_row("other", "batch_2")]
    of_attempts = [attempt_row("acme", "a", 1, "timeout"), attempt_row("other", "b", 2, "gone")]

    def change(connection: Connection) -> None:
        for table, rows in ((jobs, of_jobs), (batches, of_batches), (job_attempts, of_attempts)):
            for row in rows:
                connection.execute(insert(table).values(row))

    store.write_now(change)
    found = store.read_now(lambda connection: read_figures(connection, "acme", NOW_MS))
    assert (found.jobs, found.lines, found.finished, found.outcomes["failed"]) == (1, 5, 2, 1)
    assert (found.minutes[-1].succeeded, found.minutes[-1].others, found.busiest) == (1, 1, 2)
    assert [row.id for row in found.batches] == ["batch_1"]
    failed = store.read_now(lambda connection: failed_callbacks(connection, "acme"))
    assert [(each.job_id, each.last.error) for each in failed.shown] == [("a", "timeout")]


def test_sessions_begin_and_end_on_both_databases(store: Store) -> None:
    sessions = Sessions(store, HandClock(NOW), 60)
    principal = Principal("acme", "jwt:alice", "jwt", frozenset({Scope.READ}))

    async def tokens() -> list[str]:
        return [await sessions.begin(principal) for _ in range(MOST)]

    newest = asyncio.run(tokens())[-1]
    assert asyncio.run(sessions.find(newest)) == principal
    asyncio.run(sessions.end(newest))
    with pytest.raises(CredentialRefused):
        asyncio.run(sessions.find(newest))


def test_a_page_is_a_line_of_the_audit_with_ids_and_no_secret(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    with gateway_rig(tmp_path) as made:
        audit = Audit(file, made.clock, "gateway")
        door = replace(made.door, audit=audit)
        rig = replace(made, door=door, app=create_app(door, [page_routes]))
        put(rig, jobs, job_row("acme", "sky"))
        browser = signed_in(rig)
        browser.page("/console/job?id=sky")
        token = browser.token()
        browser.send("/console/job/cancel", {"id": "sky"}, token)
        browser.send("/console/job/cancel", {"id": "sky"}, "forged")
        audit.close()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    said = [(line["event.action"], line["event.outcome"], line.get("postback.objects", [])) for line in lines]
    assert said == [
        ("signIn", "success", []),
        ("getJob", "success", ["sky"]),
        ("readOverview", "success", []),
        ("cancelJob", "success", ["sky"]),
        ("cancelJob", "failure", []),
    ]
    assert {(line["organization.id"], line["user.id"][:4]) for line in lines} == {("acme", "key:")}
    cookie = next(iter(browser.cookies.jar)).value or ""
    assert cookie not in file.read_text()
    assert token not in file.read_text()
    assert "pk_" not in file.read_text()
