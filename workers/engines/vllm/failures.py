"""Turns vLLM's errors into the errors of an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from telemetry.logs import get_logger
from workers.engines.base import EngineDied, EngineFailed, EngineRefused, EngineUnavailable, GenerationRequest
from workers.engines.vllm.answers import refusal
from workers.engines.vllm.loading import short


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


# -- The reason for a failed load of vLLM, as one line for the operator, with the fix --
IMAGE = "vllm/vllm-openai:v0.32.0"
"""The base image of this project's image with vLLM; docs/DEPLOY.md and the Dockerfile name it too."""

_UNKNOWN_TO_THE_HUB = {"RepositoryNotFoundError", "HFValidationError"}
_NOT_FETCHED = {"LocalEntryNotFoundError", "OfflineModeIsEnabled"}

log = get_logger()


def refused(model: str, error: Exception) -> EngineRefused:
    """Return the error for a failed start. An unknown error goes to the log with its stack trace."""
    known = known_reason(model, error)
    if known is None:
        log.error("The engine could not be loaded.", action="engine-load-failed", exc_info=error)
    return EngineRefused(known or f"vLLM could not load the model {model}: {reason(error)}")


def known_reason(model: str, error: BaseException) -> str | None:
    """Return the problem and its fix; None for an unknown error, which needs its stack trace."""
    if isinstance(error, ModuleNotFoundError) and error.name == "vllm":
        return "there is no vLLM here: build the image with --target worker-gpu, or pip install 'postback[worker,vllm]'"
    names, text = {type(one).__name__ for one in _causes(error)}, reason(error)
    if "GatedRepoError" in names:
        return f"the model {model} is gated: accept its terms on the Hugging Face hub, and set HF_TOKEN of that account"
    if names & _UNKNOWN_TO_THE_HUB or "Invalid repository ID" in text:
        return (
            f"there is no model {model}: --model is a folder with a config.json, or a name on the Hugging Face hub, "
            "where a private one needs HF_TOKEN"
        )
    if names & _NOT_FETCHED:
        return f"the model {model} is not on this machine, and the Hugging Face hub is not reached: {text}"
    if "AsyncEngineArgs" in text:
        return f"POSTBACK_ENGINE__VLLM__EXTRA has an argument that vLLM does not take: {text}"
    if isinstance(error, ValidationError):
        return f"vLLM refuses POSTBACK_ENGINE__VLLM__… for the model {model}: {text}"
    if "Engine core initialization failed" in text:
        return (
            f"vLLM's process could not load the model {model}; see the lines above. If memory ran out, set "
            "POSTBACK_ENGINE__VLLM__CONTEXT_TOKENS, `gpu_memory_utilization` in …__EXTRA or, on a CPU, "
            "VLLM_CPU_KVCACHE_SPACE"
        )
    return None


def reason(error: BaseException) -> str:
    """Return the error's text as one line. For a rejected setting, return the reason without the value."""
    if isinstance(error, ValidationError):
        return short("; ".join(one["msg"] for one in error.errors(include_url=False, include_input=False)))
    return short(str(error)) or type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its chain of causes and contexts."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__
