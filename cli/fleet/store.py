"""`postback store`: the gateway's database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from cli.fleet.gateway_store import StoreUrl, opened_store, store_url
from cli.shared.errors import fail, needing, say, telling
from cli.shared.settings import fleet_settings

if TYPE_CHECKING:
    from sqlalchemy import Connection

app = typer.Typer(no_args_is_help=True, help="Upgrade the gateway's database, and rebuild its rows from Kafka.")


@app.command()
def upgrade(store: StoreUrl = None) -> None:
    """Bring the database to this program's schema. Stop the gateways and back the database up before."""
    with needing("gateway"):
        from gateway.store.store import Store, StoreAway

    with telling(StoreAway):
        before, after = Store.upgrade(store_url(store))
    if before == after:
        say(f"the store is at schema {after}")
    else:
        say(f"upgraded the store from schema {before or 'nothing'} to {after}")


@app.command()
def rebuild(store: StoreUrl = None) -> None:
    """Rebuild the rows of results and callback attempts from Kafka, beside running gateways.

    Rows whose records Kafka has deleted stay as they are. Keys, tenants, files and batches are not touched, except for
    the counts of running batches. No event, webhook or callback is sent again.
    """
    with needing("gateway"):
        from confluent_kafka import KafkaException

        from gateway.access import quotas
        from gateway.batches.counting import recounting
        from gateway.view import rebuild as rebuilding
        from telemetry.clock import SystemClock
        from workers.kafka.topics import unanswered

    count_batches = recounting(SystemClock())

    def recount(connection: Connection) -> None:
        count_batches(connection)
        quotas.recount(connection)

    kafka = fleet_settings().kafka
    with opened_store(store) as opened:
        try:
            count = rebuilding.rebuild(opened.store, kafka, recount)
        except KafkaException as error:
            raise fail(f"{unanswered(kafka, error.args[0])}; then run this command again") from None
    say(f"rebuilt the rows from {count} records")
