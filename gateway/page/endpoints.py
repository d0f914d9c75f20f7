"""Webhook endpoints: registered, tested, enabled or disabled, given a new secret, and deleted, as by the API."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.routing import Route

from gateway.access import Scope
from gateway.batches.paging import DEFAULT_LIMIT
from gateway.door import query
from gateway.door.door import Door
from gateway.door.endpoint import Body, Call
from gateway.door.noted import note_reason
from gateway.door.routes import webhook_endpoints as hooks
from gateway.errors import ApiError
from gateway.page.desk import Desk, Form, ShownPage, Visitor, asked, named
from gateway.page.rendering import link
from gateway.webhooks import endpoints
from gateway.webhooks.endpoints import EVENT_TYPES

EVENT_FIELD: Final = "event:"
"""The name of an event type's checkbox is this text and the type."""
_SAID: Final = {
    "enabled": "The endpoint is enabled.",
    "disabled": "The endpoint is disabled; events are not sent to it.",
    "deleted": "The endpoint is deleted.",
}


class EndpointPages:
    """The handlers of the page of endpoints, and of its forms."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def several(self, request: Request, visitor: Visitor) -> ShownPage:
        """Show the tenant's endpoints."""
        said = asked(request)
        query.only(said, ("after", "limit", "done"))
        wanted = query.page(said)
        done = _SAID.get(said.query_params.get("done", ""), "")
        return await self._list(visitor, wanted.limit, wanted.after, said=done)

    async def register(self, request: Request, visitor: Visitor, form: Form) -> ShownPage:
        """Write a new endpoint and show its secret; an error is shown on the form, with the visitor's input."""
        try:
            made = await hooks.create(Call(self._door, request, visitor.principal, given=terms_of_form(form)))
        except ApiError as error:
            return await self._refused(request, visitor, error, kept=form)
        return ShownPage("secret", {"made": made, "overlap": False})

    async def test(self, request: Request, visitor: Visitor, form: Form) -> ShownPage:
        """Send a sample event, and show the status of the endpoint's answer."""
        kind = form.get("event_type", "")
        body = Body(hooks.WebhookTestRequest), {"event_type": kind}
        try:
            status = (await hooks.test(self._call(request, visitor, form, *body)))["status_code"]
        except ApiError as error:
            return await self._refused(request, visitor, error)
        answered = f"The endpoint answered the test event {kind} with status {status}"
        if 200 <= status < 300:
            return await self._list(visitor, said=f"{answered}.")
        return await self._list(visitor, problem=f"{answered}; delivery would try such an event again, or give it up.")

    async def switch(self, request: Request, visitor: Visitor, form: Form) -> str:
        """Enable or disable an endpoint."""
        wanted = {"true": True, "false": False}.get(form.get("enabled", ""), form.get("enabled", ""))
        made = await hooks.update(self._call(request, visitor, form, None, {"enabled": wanted}))
        return link("/endpoints", done="enabled" if made["enabled"] else "disabled")

    async def rotate(self, request: Request, visitor: Visitor, form: Form) -> ShownPage:
        """Begin a new secret, and show it."""
        overlap = "overlap" in form
        body = Body(hooks.WebhookRotation), {"keep_old_secret_active_for_24_hours": overlap}
        return ShownPage(
            "secret", {"made": await hooks.rotate(self._call(request, visitor, form, *body)), "overlap": overlap}
        )

    async def delete(self, request: Request, visitor: Visitor, form: Form) -> str:
        """Delete an endpoint."""
        await hooks.delete(self._call(request, visitor, form))
        return link("/endpoints", done="deleted")

    def _call(
        self, request: Request, visitor: Visitor, form: Form, body: Body | None = None, given: Any = None
    ) -> Call:
        """Return the call of the API that the form stands for."""
        path = {"webhook_endpoint_id": named(request, form, "webhook_endpoint")}
        return Call(self._door, request, visitor.principal, body, path, given)

    async def _refused(
        self, request: Request, visitor: Visitor, error: ApiError, kept: Form | None = None
    ) -> ShownPage:
        """Show the error above the form or the list. An endpoint that does not exist has the error's own page."""
        if error.status == 404:
            raise error
        note_reason(request, error.code)
        return await self._list(visitor, problem=error.message, kept=kept, status=error.status)

    async def _list(
        self,
        visitor: Visitor,
        limit: int = DEFAULT_LIMIT,
        after: str | None = None,
        *,
        said: str = "",
        problem: str = "",
        kept: Form | None = None,
        status: int = 200,
    ) -> ShownPage:
        tenant = visitor.principal.tenant
        rows, more = await self._door.store.read(lambda open_: endpoints.page(open_, tenant, limit, after))
        values = {"rows": rows, "has_more": more, "after": after, "said": said, "problem": problem, "kept": kept}
        can_sign = self._door.webhooks is not None
        kinds = {"kinds": EVENT_TYPES, "event_field": EVENT_FIELD}
        return ShownPage("endpoints", {**values, **kinds, "can_sign": can_sign}, status)


def terms_of_form(form: Form) -> dict[str, Any]:
    """Return the API's body for the form's fields. Raises ApiError (400) for a header line without a colon."""
    headers = {}
    for number, line in enumerate(form.get("headers", "").splitlines(), 1):
        if not line.strip():
            continue
        name, colon, value = line.partition(":")
        if not colon:
            message = f"headers: line {number} has no colon; write each header as `name: value`."
            raise ApiError(400, "invalid_value", message, param="headers")
        if name.strip() in headers:
            message = f"headers: line {number} repeats a header; write each header once."
            raise ApiError(400, "invalid_value", message, param="headers")
        headers[name.strip()] = value.strip()
    events = [kind for kind in EVENT_TYPES if f"{EVENT_FIELD}{kind}" in form]
    return {
        "name": form.get("name", "").strip(),
        "url": form.get("url", "").strip(),
        "event_types": events,
        "headers": headers,
    }


def endpoint_routes(door: Door, desk: Desk) -> list[Route]:
    """Return the routes of webhook endpoints."""
    pages = EndpointPages(door)
    return [
        desk.shows("/endpoints", Scope.READ, "listWebhookEndpoints", pages.several),
        desk.acts("/endpoints/register", Scope.WEBHOOKS, "createWebhookEndpoint", pages.register),
        desk.acts("/endpoints/test", Scope.WEBHOOKS, "testWebhookEndpoint", pages.test),
        desk.acts("/endpoints/switch", Scope.WEBHOOKS, "updateWebhookEndpoint", pages.switch),
        desk.acts("/endpoints/rotate", Scope.WEBHOOKS, "rotateWebhookSecret", pages.rotate),
        desk.acts("/endpoints/delete", Scope.WEBHOOKS, "deleteWebhookEndpoint", pages.delete),
    ]
