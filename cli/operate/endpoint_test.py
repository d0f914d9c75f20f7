"""`postback endpoints test`: sends one signed test event to a URL, as delivery sends callbacks, but without Kafka."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.shared.errors import FAILED, telling
from cli.shared.given_secrets import SECRET_HELP, checked_secrets
from cli.shared.settings import checked_settings, checked_tenant, checked_text, fleet_settings, keyring_path
from cli.shared.terminal import harmless
from schemas.outcome import Outcome

if TYPE_CHECKING:
    from schemas.result import Result
    from schemas.settings import FleetSettings
    from schemas.signature import Signer
    from workers.delivery.post import PostOutcome

TEST_METADATA = {"postback-test": "true"}
"""The mark of a test event, in `data.metadata`."""


def test_endpoint(
    url: Annotated[str, typer.Argument(metavar="URL", help="The endpoint.")],
    outcome: Annotated[Outcome, typer.Option(help="The outcome that the event reports.")] = Outcome.SUCCEEDED,
    secrets: Annotated[
        list[str] | None,
        typer.Option(
            "--secret", help=f"Sign with this secret instead of the tenant's keys. {SECRET_HELP} May be repeated."
        ),
    ] = None,
    tenant: Annotated[
        str, typer.Option(help="The tenant that the event names, and whose keys sign the event.")
    ] = "default",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Send one signed test event to a URL, and show the answer's status, time and first 1,024 bytes.

    Headers, body and TLS are those of a callback, and the same rules for addresses apply (POSTBACK_EGRESS__…,
    POSTBACK_ENV). The tenant's keys in the keyring at POSTBACK_KEYRING sign the event, unless --secret is given. The
    event's data.metadata has postback-test, and the event's job does not exist. The command needs no Kafka.

    Exit status: 0 the endpoint answered 2xx, 1 it did not, 2 wrong options.
    """
    import asyncio

    url, tenant, fleet = checked_url(url), checked_tenant(tenant), fleet_settings()
    signer = _signer(checked_secrets(secrets or []), tenant, fleet)
    webhook_id, body = event_of(outcome, tenant)
    answered = asyncio.run(_post(url, tenant, signer, webhook_id, body, fleet))
    said = _said(url, webhook_id, answered)
    typer.echo(json.dumps(said) if as_json else _line(said))
    if said["error"] is not None:
        raise typer.Exit(FAILED)


def event_of(outcome: Outcome, tenant: str) -> tuple[str, bytes]:
    """Return the webhook id and the body of a new test event."""
    from uuid import uuid4

    from schemas.event import event_body

    webhook_id = f"msg_{uuid4().hex}"
    return webhook_id, event_body(_result(outcome), webhook_id, tenant)


def _result(outcome: Outcome) -> Result:
    from uuid import uuid4

    from schemas.result import Result, ResultError
    from telemetry.clock import SystemClock

    common: dict[str, Any] = {
        "job_id": f"job_{uuid4().hex}",
        "outcome": outcome,
        "metadata": TEST_METADATA,
        "created_at": int(SystemClock().time()),
    }
    if outcome is Outcome.SUCCEEDED:
        return Result(text="This is a test event; no model wrote it.", finish_reason="stop", **common)
    return Result(error=ResultError(code="test", message="This is a test event; no job failed."), **common)


async def _post(
    url: str, tenant: str, signer: Signer, webhook_id: str, body: bytes, fleet: FleetSettings
) -> PostOutcome:
    from telemetry.clock import SystemClock
    from workers.delivery.post import Exhausted, Poster
    from workers.delivery.settings import MAX_ANSWER_EXCERPT_BYTES, DeliverySettings
    from workers.egress import EgressSettings

    clock = SystemClock()
    policy = checked_settings(EgressSettings).callback_policy(development=fleet.env == "development")
    settings = checked_settings(DeliverySettings).model_copy(update={"answer_excerpt_bytes": MAX_ANSWER_EXCERPT_BYTES})
    with telling(Exhausted):
        poster = Poster(settings, policy, clock)
        try:
            return await poster.post(url, body, signer.headers(webhook_id, int(clock.time()), body), tenant)
        finally:
            await poster.close()


def _signer(secrets: list[str], tenant: str, fleet: FleetSettings) -> Signer:
    from schemas.signature import Signer
    from telemetry.clock import SystemClock
    from workers.delivery.keyring import Keyring

    if secrets:
        return Signer(secrets)
    return Keyring.load(keyring_path(fleet)).signer(tenant, SystemClock().time())


def checked_url(url: str) -> str:
    """Return the URL if a job may name it as its callback, else end the command."""
    from schemas.job import Url

    return checked_text(Url, url, "URL: is not an http or https URL without credentials")


def _said(url: str, webhook_id: str, answered: PostOutcome) -> dict[str, Any]:
    from telemetry.logs import origin_of
    from workers.delivery.post import FailedDelivery

    failed = answered if isinstance(answered, FailedDelivery) else None
    return {
        "webhook_id": webhook_id,
        "origin": origin_of(url),
        "status": answered.status,
        "duration_ms": round(answered.duration_seconds * 1000, 3),
        "error": str(failed.reason) if failed is not None else None,
        "detail": failed.detail if failed is not None else None,
        "answer": answered.answer_excerpt,
        "retry_after_seconds": failed.retry_after_seconds if failed is not None else None,
    }


def _line(said: dict[str, Any]) -> str:
    status = f"status {said['status']}" if said["status"] is not None else "no status"
    outcome = f"failed: {said['error']}, {status}" if said["error"] else f"delivered: {status}"
    detail = f" ({said['detail']})" if said["detail"] else ""
    wait = f", Retry-After {said['retry_after_seconds']:g} s" if said["retry_after_seconds"] is not None else ""
    answer = f"; the answer begins: {said['answer']}" if said["answer"] else ""
    return harmless(
        f"{said['webhook_id']} to {said['origin']} {outcome}{detail}, {said['duration_ms']} ms{wait}{answer}"
    )
