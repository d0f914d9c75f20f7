"""Turns vLLM's errors into the errors of an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from workers.engines.base import EngineDied, EngineFailed, EngineUnavailable, GenerationRequest
from workers.engines.vllm.sampling import refusal


@contextmanager
def as_engine_errors(request: GenerationRequest, died: Callable[[], None]) -> Iterator[None]:
    """During the block, turn vLLM's errors into EngineErrors about this request.

    `died` is called first if the engine's process died.
    """
    from vllm.exceptions import GracefulHTTPError, VLLMClientError, VLLMServerError
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError as error:
        died()
        raise EngineDied("the engine's process ended with this request in flight") from error
    except VLLMClientError as error:
        raise refusal(request, error) from error
    except GracefulHTTPError as error:
        raise EngineUnavailable(f"the engine accepts no more requests now:  {type(error).__name__}") from error
    except VLLMServerError as error:
        raise EngineFailed(f"the engine failed: {type(error).__name__}") from error
