"""`/v1/models`: the models that the fleet's workers announce, and that the tenant may use.

Source: OpenAI's API reference, "Models".
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.access import Principal, Scope
from gateway.door.body import json_response
from gateway.door.door import Door
from gateway.door.errors import not_found, unavailable
from gateway.door.fleet_models import FleetModels, ModelsUnknown


def routes(door: Door) -> list[BaseRoute]:
    """Return the routes of models."""
    fleet = door.models

    async def list_models(request: Request) -> Response:
        principal = await door.principal(request, Scope.READ)
        models = [_model(fleet, name) for name in await _names(door, principal)]
        return json_response({"object": "list", "data": models})

    async def retrieve(request: Request) -> Response:
        principal = await door.principal(request, Scope.READ)
        name = request.path_params["model"]
        if name not in await _names(door, principal):
            raise not_found("model", name)
        return json_response(_model(fleet, name))

    return [Route("/v1/models", list_models), Route("/v1/models/{model:path}", retrieve)]


async def _names(door: Door, principal: Principal) -> list[str]:
    """Return the names of the tenant's models that workers announce. Raises ApiError (503)."""
    try:
        names = await door.models.names()
    except ModelsUnknown:
        message = "The workers' models are unknown, since Kafka does not answer; repeat the request."
        raise unavailable("models_unknown", message) from None
    allowed = (await door.access.tenant(principal.tenant)).models
    return sorted(names if allowed is None else set(names) & set(allowed))


def _model(fleet: FleetModels, name: str) -> dict[str, Any]:
    """Return a Model object. `created` is the time of the model's first announcement."""
    return {"id": name, "object": "model", "created": fleet.created(name), "owned_by": "postback"}
