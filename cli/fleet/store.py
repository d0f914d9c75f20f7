"""`postback store`: the gateway's database."""

from __future__ import annotations

import typer

from cli.fleet.gateway_store import StoreUrl, opened_store, store_url
from cli.shared.errors import fail, say
from cli.shared.settings import fleet_settings

app = typer.Typer(no_args_is_help=True, help="Upgrade the gateway's database, and rebuild its rows from Kafka.")


@app.command()
def upgrade(store: StoreUrl = None) -> None:
    """Bring the database to this program's schema. Stop the gateways and back the database up before."""
    from gateway.store.store import Store

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
    from confluent_kafka import KafkaException

    from gateway.view import rebuild as rebuilding
    from workers.kafka.topics import unanswered

    kafka = fleet_settings().kafka
    with opened_store(store) as opened:
        try:
            count = rebuilding.rebuild(opened.store, kafka)
        except KafkaException as error:
            raise fail(f"{unanswered(kafka, error.args[0])}; then run this command again") from None
    say(f"rebuilt the rows from {count} records")
