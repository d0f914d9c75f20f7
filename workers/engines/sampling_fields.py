"""The sampling fields of jobs, and the name of each in the request of each kind of engine: one row a field.

A field passes from the job to the engine without a change. An engine kind without a name for a field does not get it,
and the result names the field. Fields that steer an engine for other jobs too have no row: vLLM's `priority`,
`request_id`, `kv_transfer_params` and `cache_salt`, and `use_beam_search`, which takes a multiple of the memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from workers.engines.base import GenerationRequest

_SAME: Final = ("echo", "openai", "vllm")


def _row(name: str, *same: str, **others: str) -> dict[str, str]:
    return {**dict.fromkeys((*_SAME, *same), name), **others}


NAMES: Final[Mapping[str, Mapping[str, str]]] = {
    "top_p": _row("top_p", "anthropic", "responses", gemini="topP"),
    "min_p": _row("min_p"),
    "seed": _row("seed", gemini="seed"),
    # The Responses API takes no stop texts, so its engine cuts the answer itself.
    "stop": _row("stop", "responses", anthropic="stop_sequences", gemini="stopSequences"),
}
"""Maps the job's field to the engine kinds that take it, and to their names for it."""


def named(kind: str, request: GenerationRequest) -> dict[str, Any]:
    """Return the request's sampling fields by the names of this engine kind, without those that it does not take."""
    return {NAMES[field][kind]: value for field, value in request.sampling.items() if kind in NAMES[field]}


def left_out(kind: str, request: GenerationRequest) -> tuple[str, ...]:
    """Return the request's sampling fields that this engine kind does not take."""
    return tuple(field for field in request.sampling if kind not in NAMES[field])
