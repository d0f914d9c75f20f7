"""OpenAI's Python SDK manages webhook endpoints over real TLS, and unwraps the events that delivery sends to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openai import BadRequestError, InvalidWebhookSignatureError, NotFoundError, OpenAI

from tests.integration.certificates import Authority
from tests.integration.gateway.gateway_process import Gateway
from tests.product import eventually

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def door(tls_gateway: Gateway, authority: Authority) -> Iterator[Gateway]:
    """A gateway, an echo worker, delivery and a receiver."""
    product = tls_gateway.product
    product.worker("w")
    product.deliver("d")
    product.callbacks.tenants = ("acme", "manager")
    product.callbacks.up()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(authority.ca_file))
        yield tls_gateway


def client_of(door: Gateway, tenant: str) -> OpenAI:
    return OpenAI(base_url=f"{door.url}/v1", api_key=door.key(tenant), max_retries=0)


def received_as(door: Gateway, kind: str) -> list[Any]:
    return [one for one in list(door.product.callbacks.received) if one.event.get("type") == kind]


def test_a_background_response_is_announced_to_an_endpoint_and_unwraps_with_its_secret_alone(door: Gateway) -> None:
    url = door.product.callbacks.url
    with client_of(door, "acme") as client:
        created = client.webhooks.create(name="mine", url=url, event_types=["response.completed"])
        response = client.responses.create(input="Why is the sky blue?", model="echo", background=True)
        eventually(
            lambda: bool(received_as(door, "response.completed")),
            120,
            lambda: "\n".join(role.said()[-1500:] for role in door.product.roles),
        )
        [received] = received_as(door, "response.completed")

        event: Any = client.webhooks.unwrap(received.body, received.headers, secret=created.signing_secret)
        assert (event.type, event.data.id) == ("response.completed", response.id)
        assert client.responses.retrieve(event.data.id).status == "completed"
        others = client.webhooks.create(name="other", url=url, event_types=["batch.completed"])
        with pytest.raises(InvalidWebhookSignatureError):
            client.webhooks.unwrap(received.body, received.headers, secret=others.signing_secret)


def test_endpoints_are_listed_changed_rotated_tested_and_deleted(door: Gateway) -> None:
    url = door.product.callbacks.url
    with client_of(door, "manager") as client:
        made = [client.webhooks.create(name=f"e{n}", url=url, event_types=["batch.failed"]) for n in range(3)]
        assert [each.id for each in client.webhooks.list(limit=2)] == [each.id for each in made[::-1]]
        assert client.webhooks.update(made[0].id, event_types=["batch.expired"]).event_types == ["batch.expired"]
        assert "batch.completed" in client.webhooks.event_types.list().data

        rotated = client.webhooks.rotate_secret(made[0].id)
        tested = client.webhooks.test(made[0].id, event_type="batch.completed")
        assert tested.status_code == 200
        [received] = received_as(door, "batch.completed")
        assert client.webhooks.unwrap(received.body, received.headers, secret=rotated.signing_secret).id
        with pytest.raises(InvalidWebhookSignatureError):
            client.webhooks.unwrap(received.body, received.headers, secret=made[0].signing_secret)

        assert client.webhooks.delete(made[1].id).deleted
        with pytest.raises(NotFoundError):
            client.webhooks.retrieve(made[1].id)
        with pytest.raises(BadRequestError, match="event_types"):
            client.webhooks.create(name="e", url=url, event_types=["eval.run.failed"])
