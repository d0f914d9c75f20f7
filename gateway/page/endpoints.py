"""Webhook endpoints: registered, tested, enabled or disabled, given a new secret, and deleted, as by the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from starlette.routing import Route

from gateway.access import Scope
from gateway.door import query
from gateway.door.endpoint import Body, Call
from gateway.door.noted import note_reason
from gateway.door.routes import webhook_endpoints as hooks
from gateway.errors import ApiError
from gateway.page.desk import Desk, ShownPage, Visit, asked
from gateway.page.rendering import link
from gateway.paging import FIRST_PAGE, PageQuery
from gateway.webhooks import endpoints
from gateway.webhooks.endpoints import EVENT_TYPES

_KIND: Final = "webhook_endpoint"
EVENT_FIELD: Final = "event:"
"""The name of an event type's checkbox is this text and the type."""
_SAID: Final = {
    "enabled": "The endpoint is enabled.",
    "disabled": "The endpoint is disabled; events are not sent to it.",
    "deleted": "The endpoint is deleted.",
}


def endpoint_routes(desk: Desk) -> list[Route]:
    """Return the routes of webhook endpoints."""
    return [
        desk.shows("/endpoints", Scope.READ, "listWebhookEndpoints", _several, tab="Endpoints"),
        desk.acts("/endpoints/register", Scope.WEBHOOKS, "createWebhookEndpoint", _register),
        desk.acts("/endpoints/test", Scope.WEBHOOKS, "testWebhookEndpoint", _test),
        desk.acts("/endpoints/switch", Scope.WEBHOOKS, "updateWebhookEndpoint", _switch),
        desk.acts("/endpoints/rotate", Scope.WEBHOOKS, "rotateWebhookSecret", _rotate),
        desk.acts("/endpoints/delete", Scope.WEBHOOKS, "deleteWebhookEndpoint", _delete),
    ]


async def _several(visit: Visit) -> ShownPage:
    said = asked(visit.request)
    query.only(said, ("after", "limit", "done"))
    return await _list(visit, query.page(said), said=_SAID.get(said.query_params.get("done", ""), ""))


async def _register(visit: Visit) -> ShownPage:
    """Write a new endpoint and show its secret; an error is shown on the form, with the visitor's input."""
    try:
        made = await hooks.create(Call(visit.door, visit.request, visit.principal, given=terms_of_form(visit.form)))
    except ApiError as error:
        return await _refused(visit, error, kept=visit.form)
    return ShownPage("secret", {"made": made, "overlap": False})


async def _test(visit: Visit) -> ShownPage:
    """Send a sample event, and show the status of the endpoint's answer."""
    kind = visit.form.get("event_type", "")
    call = visit.call(_KIND, Body(hooks.WebhookTestRequest), {"event_type": kind})
    try:
        status = (await hooks.test(call))["status_code"]
    except ApiError as error:
        return await _refused(visit, error)
    answered = f"The endpoint answered the test event {kind} with status {status}"
    if 200 <= status < 300:
        return await _list(visit, said=f"{answered}.")
    return await _list(visit, problem=f"{answered}; delivery would try such an event again, or give it up.")


async def _switch(visit: Visit) -> str:
    """Enable or disable an endpoint."""
    wanted = visit.form.get("enabled", "")
    given = {"enabled": {"true": True, "false": False}.get(wanted, wanted)}
    made = await hooks.update(visit.call(_KIND, given=given))
    return link("/endpoints", done="enabled" if made["enabled"] else "disabled")


async def _rotate(visit: Visit) -> ShownPage:
    """Begin a new secret, and show it."""
    overlap = "overlap" in visit.form
    given = {"keep_old_secret_active_for_24_hours": overlap}
    made = await hooks.rotate(visit.call(_KIND, Body(hooks.WebhookRotation), given))
    return ShownPage("secret", {"made": made, "overlap": overlap})


async def _delete(visit: Visit) -> str:
    await hooks.delete(visit.call(_KIND))
    return link("/endpoints", done="deleted")


async def _refused(visit: Visit, error: ApiError, kept: Mapping[str, str] | None = None) -> ShownPage:
    """Show the error above the form or the list. An endpoint that does not exist has the error's own page."""
    if error.status == 404:
        raise error
    note_reason(visit.request, error.code)
    return await _list(visit, problem=error.message, kept=kept, status=error.status)


async def _list(
    visit: Visit,
    wanted: PageQuery = FIRST_PAGE,
    *,
    said: str = "",
    problem: str = "",
    kept: Mapping[str, str] | None = None,
    status: int = 200,
) -> ShownPage:
    found = await visit.read(endpoints.page, wanted)
    values = {"rows": found.rows, "has_more": found.has_more, "after": wanted.after}
    kinds = {"kinds": EVENT_TYPES, "event_field": EVENT_FIELD, "said": said, "problem": problem, "kept": kept}
    return ShownPage("endpoints", {**values, **kinds, "can_sign": visit.door.webhooks is not None}, status)


def terms_of_form(form: Mapping[str, str]) -> dict[str, Any]:
    """Return the API's body for the form's fields. Raises ApiError (400) for a header line without a colon."""
    headers = dict[str, str]()
    for number, line in enumerate(form.get("headers", "").splitlines(), 1):
        if not line.strip():
            continue
        name, colon, value = line.partition(":")
        problem = "has no colon; write each header as `name: value`" if not colon else ""
        if problem or name.strip() in headers:
            message = f"headers: line {number} {problem or 'repeats a header; write each header once'}."
            raise ApiError(400, "invalid_value", message, param="headers")
        headers[name.strip()] = value.strip()
    events = [kind for kind in EVENT_TYPES if f"{EVENT_FIELD}{kind}" in form]
    texts = {name: form.get(name, "").strip() for name in ("name", "url")}
    return {**texts, "event_types": events, "headers": headers}
