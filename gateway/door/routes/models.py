"""`/v1/models`: the models that the fleet's workers announce, and that the tenant may use.

Source: OpenAI's API reference, "Models".
"""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.access import Principal, Scope
from gateway.door.door import Door
from gateway.door.errors import ApiError, not_found
from gateway.door.fleet_models import FleetModels, ModelsUnknown
from producers.workers import announced_models


def routes(door: Door) -> list[BaseRoute]:
    """Return the routes of models."""
    fleet = FleetModels(lambda: announced_models(door.fleet.kafka, door.clock), door.clock)

    async def list_models(request: Request) -> Response:
        principal = await door.principal(request, Scope.READ)
        return _json({"object": "list", "data": [_model(name) for name in await _names(door, fleet, principal)]})

    async def retrieve(request: Request) -> Response:
        principal = await door.principal(request, Scope.READ)
        name = request.path_params["model"]
        if name not in await _names(door, fleet, principal):
            raise not_found("model", name)
        return _json(_model(name))

    return [Route("/v1/models", list_models), Route("/v1/models/{model:path}", retrieve)]


async def _names(door: Door, fleet: FleetModels, principal: Principal) -> list[str]:
    """Return the names of the tenant's models that workers announce. Raises ApiError (503)."""
    try:
        names = await fleet.names()
    except ModelsUnknown:
        message = "The workers' models are unknown, since Kafka does not answer; repeat the request."
        raise ApiError(503, "models_unknown", message, headers={"retry-after": "5"}) from None
    allowed = (await door.access.tenant(principal.tenant)).models
    return sorted(names if allowed is None else set(names) & set(allowed))


def _model(name: str) -> dict[str, Any]:
    """Return a Model object. Workers do not announce a model's age, so `created` is 0."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "postback"}


def _json(body: dict[str, Any]) -> Response:
    return Response(to_json(body), media_type="application/json")
