"""The schema's revisions on both databases, and the refusal of a store with another revision."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_engine, text

from gateway.store.migrating import scripts
from gateway.store.revision import NEWEST
from gateway.store.schema import OtherSchema
from gateway.store.store import Store
from gateway.store.tables import metadata
from tests.postback_command import environment_of, postback_here


@pytest.fixture
def engine(store_url: str) -> Iterator[Engine]:
    made = create_engine(store_url)
    yield made
    made.dispose()


def test_the_revisions_make_the_tables_that_the_code_declares(store_url: str, engine: Engine) -> None:
    assert Store.upgrade(store_url) == (None, "0001")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    Store.open(store_url).close()


def test_the_outbox_never_gives_a_number_twice_in_a_store_of_either_origin(store_url: str) -> None:
    Store.upgrade(store_url)
    store = Store.open(store_url)
    row = {"size": 0, "topic": "t", "headers": b"[]"}
    from gateway.store.tables import outbox

    for number in (1, 2):
        store.write_now(lambda connection: connection.execute(outbox.insert(), row))
        found = store.read_now(lambda connection: connection.execute(outbox.select()).one())
        assert found.number == number
        store.write_now(lambda connection: connection.execute(outbox.delete()))
    store.close()


def test_the_newest_revision_is_the_last_one_of_the_folder() -> None:
    assert scripts().get_current_head() == NEWEST


def test_a_new_store_is_current(store_url: str) -> None:
    Store.open(store_url).close()
    assert Store.upgrade(store_url) == ("0001", "0001")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("UPDATE alembic_version SET version_num = '0000'", "older than this program; .*postback store upgrade"),
        ("UPDATE alembic_version SET version_num = '9999'", "newer than this program"),
        ("DROP TABLE alembic_version", "older than this program"),
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


def test_a_command_that_opens_a_current_store_imports_no_alembic(store_url: str) -> None:
    Store.open(store_url).close()
    code = (
        "import sys; from gateway.store.store import Store; Store.open(sys.argv[1]).close();"
        "print(*(name for name in sys.modules if name.partition('.')[0] in ('alembic', 'mako')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, store_url], env=environment_of(), capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_the_command_upgrades_an_empty_database_and_then_has_nothing_to_do(store_url: str) -> None:
    env = environment_of(POSTBACK_STORE__URL=store_url)
    first, second = (postback_here("store", "upgrade", env=env) for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0)
    assert "from schema nothing to 0001" in first.stderr
    assert "the store is at schema 0001" in second.stderr


def test_the_command_refuses_a_newer_store(store_url: str, engine: Engine) -> None:
    Store.open(store_url).close()
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    refused = postback_here("store", "upgrade", env=environment_of(POSTBACK_STORE__URL=store_url))
    assert refused.returncode == 1
    assert "another program" in refused.stderr
