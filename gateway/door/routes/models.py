"""`/v1/models`: the models that the fleet's workers announce, and that the tenant may use.

Source: OpenAI's API reference, "Models".
"""

from __future__ import annotations

from typing import Any

from gateway.door.endpoint import Answer, Call
from gateway.door.fleet import FleetModels
from gateway.errors import not_found


async def list_models(call: Call) -> Answer:
    """List the tenant's models."""
    models = [_model(call.door.models, name) for name in await _names(call)]
    return {"object": "list", "data": models}


async def retrieve(call: Call) -> Answer:
    """Read one model."""
    name = call.in_path("model")
    if name not in await _names(call):
        raise not_found("model", name)
    return _model(call.door.models, name)


async def _names(call: Call) -> list[str]:
    """Return the names of the tenant's models that workers announce. Raises ApiError (503)."""
    names = await call.door.models.names()
    allowed = (await call.door.access.tenant(call.tenant)).models
    return sorted(names if allowed is None else set(names) & set(allowed))


def _model(fleet: FleetModels, name: str) -> dict[str, Any]:
    """Return a Model object. `created` is the time of the model's first announcement."""
    return {"id": name, "object": "model", "created": fleet.created(name), "owned_by": "postback"}
