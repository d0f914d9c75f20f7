"""The store while its PostgreSQL is killed and started again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Connection, select

from gateway.accept.acceptance import Acceptance
from gateway.accept.outbox import put_record
from gateway.accept.position import PositionReader, adopt
from gateway.store.meta import set_value, value_of
from gateway.store.settings import StoreSettings
from gateway.store.store import Store, StoreAway
from gateway.store.tables import meta, outbox
from schemas.settings import KafkaSettings
from telemetry.hand_clock import HandClock
from telemetry.metrics import Metrics
from tests.postgres_server import PostgresServer
from tests.product import eventually


def put(name: str) -> Callable[[Connection], None]:
    return lambda connection: set_value(connection, name, "v")


def names(store: Store) -> set[str]:
    """Names of the values that a test has written."""
    found = set(store.read_now(lambda connection: connection.scalars(select(meta.c.name)).all()))
    return found - {"store", "schema"}


def test_a_committed_change_is_kept_and_an_open_one_runs_again() -> None:
    with PostgresServer() as server:
        store = Store.open(server.new_database())
        store.write_now(put("before"))
        runs: list[int] = []

        def killed_once(connection: Connection) -> None:
            runs.append(1)
            set_value(connection, "during", "v")
            if len(runs) == 1:
                server.kill()
                server.start()

        store.write_now(killed_once)
        assert names(store) == {"before", "during"}
        assert len(runs) == 2
        server.kill()
        server.start()
        assert names(store) == {"before", "during"}
        store.close()


def test_a_change_whose_answer_was_lost_after_its_commit_is_not_run_again() -> None:
    with PostgresServer() as server:
        url = server.new_database()
        Store.open(url).close()
        # Each commit is durable, but PostgreSQL never answers, because it waits for a standby that does not exist. It
        # does so from its start on; after a reload, some commits may still be answered.
        server.command("ALTER SYSTEM SET synchronous_standby_names = 'absent'")
        server.kill()
        server.start()
        store = Store.open(url)
        runs: list[int] = []

        def count(connection: Connection) -> None:
            runs.append(1)
            set_value(connection, "count", str(int(value_of(connection, "count") or 0) + 1))

        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        future = store.submit(count)
        eventually(lambda: server.command(waiting) == 1, 30, "the commit does not wait")
        server.command("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
        future.result(60)
        server.command("ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
        assert store.read_now(lambda connection: value_of(connection, "count")) == "1"
        assert len(runs) == 1
        store.close()


def test_requests_are_refused_while_postgres_is_away_and_served_afterwards() -> None:
    with PostgresServer() as server:
        store = Store.open(server.new_database())
        server.kill()
        with pytest.raises(StoreAway):
            store.write_now(put("a"))
        with pytest.raises(StoreAway):
            names(store)
        server.start()
        store.write_now(put("b"))
        assert names(store) == {"b"}
        store.close()


def test_a_standby_without_the_last_commits_gives_no_number_that_kafka_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows below Kafka's position are deleted as sent: an accepted job with such a number would be lost."""
    position: list[int | None] = [None]
    monkeypatch.setattr(PositionReader, "read", lambda _: position[0])

    def accept(connection: Connection) -> None:
        put_record(connection, "model_requests", b"k", b"v")

    def numbers(connection: Connection) -> list[int]:
        return list(connection.scalars(select(outbox.c.number).order_by(outbox.c.number)))

    with PostgresServer() as server:
        store = Store.open(server.new_database())
        acceptance = Acceptance(store, KafkaSettings(), StoreSettings(), HandClock(), Metrics())
        assert acceptance._released()
        store.write_now(accept)
        server.kill()
        with server.copied() as standby:
            server.start()
            for _ in range(5):
                store.write_now(accept) if acceptance._released() else None
            relayed = store.read_now(numbers)
            position[0] = relayed[-1] + 1  # the relay has put all rows on Kafka
            server.kill()
            standby.start()  # it takes over the address, and lacks five commits
            with pytest.raises(StoreAway, match="Kafka has not yet shown"):
                store.write_now(accept)
            assert acceptance.reasons() != []
            assert acceptance._released()
            store.write_now(accept)
            store.write_now(lambda connection: adopt(connection, position[0]) and None)
            [kept] = store.read_now(numbers)
            assert kept > relayed[-1]
            assert acceptance.reasons() == []
            store.close()
