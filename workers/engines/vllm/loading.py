"""Loading of vLLM: the bounded number of loads of an engine that died, the health call, and the reasons of failures."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, Final

from pydantic import ValidationError

from telemetry.logs import get_logger
from workers.engines.base import EngineLost, EngineRefused, EngineUnavailable

LOADS = 5
"""After this many failed loads in a row, the engine is lost, because more loads would not repair the machine."""
FIRST_PAUSE_SECONDS = 5.0
"""The pause after the first failure; each later pause is twice as long."""
MAX_REASON_CHARACTERS = 300

log = get_logger()


async def load_again(load: Callable[[], Awaitable[None]], closing: asyncio.Event) -> None:
    """Call `load` until it returns.

    Raises EngineLost after `LOADS` failures. Raises EngineUnavailable if `closing` is set at a failure or in a pause.
    """
    pause, failure = FIRST_PAUSE_SECONDS, ""
    for number in range(1, LOADS + 1):
        try:
            return await load()
        except Exception as error:
            failure = short(str(error)) or type(error).__name__
            if not closing.is_set():
                log.error(
                    "The engine could not be loaded.",
                    action="engine-load-failed",
                    failures=number,
                    allowed=LOADS,
                    exc_info=error,
                )
        if closing.is_set() or (number < LOADS and await is_set_within(closing, pause)):
            raise EngineUnavailable("the engine is closed")
        pause *= 2
    raise EngineLost(f"the engine died, and loading it failed {LOADS} times in a row: {failure}")


def short(text: str) -> str:
    """Return the text as one line of at most `MAX_REASON_CHARACTERS`."""
    return " ".join(text.split())[:MAX_REASON_CHARACTERS]


async def is_set_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait at most `seconds` for the event. Return True if the event was set in time."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


# -- The health call: an engine hangs if its processes live but do not answer a call between two steps of --
LOOKS: Final = 4
"""A health call waits in LOOKS slices.

The pause before a call takes 1/LOOKS of `hung_seconds`, and the call itself takes the rest.
"""

WARM_UP_SECONDS: Final = 600.0
"""Seconds in which a new engine must give its first token and load its adapters.

The number is vLLM's own limit for its start (VLLM_ENGINE_READY_TIMEOUT_S).
"""


async def silence(llm: Any, seconds: float) -> float | None:
    """Call vLLM's engine processes. Return the seconds without an answer, or None if they answer in time.

    The bound is `seconds` of this process's running time. The wait is cut into slices, so that the answer still has
    time to arrive after a suspension of this process or machine.
    """
    loop = asyncio.get_running_loop()
    began, call = loop.time(), asyncio.ensure_future(llm.is_sleeping())
    try:
        for _ in range(LOOKS):
            await asyncio.wait({call}, timeout=seconds / LOOKS)
            if call.done():
                call.exception()  # prevents asyncio's warning about an unread error; `errored` reports the error
                return None
    finally:
        call.cancel()
    return loop.time() - began


async def warm(llm: Any) -> None:
    """Generate one token before the first job, because the first request takes many seconds on some machines."""
    from vllm import SamplingParams
    from vllm.inputs.engine import tokens_input

    async for _ in llm.generate(tokens_input([1]), SamplingParams(max_tokens=1, logprobs=0), "warm-up"):
        pass


# -- Calls of vLLM's engine process that end when the process does --
DEATH_LOOK_SECONDS: Final = 0.5
"""The pause between two looks at the engine's health during a call."""


async def while_alive(llm: Any, call: Coroutine[Any, Any, None]) -> None:
    """Await a call of the engine.

    Raises EngineUnavailable if vLLM's process ends, because a call of vLLM 0.32 would then never end.
    """
    task = asyncio.ensure_future(call)
    try:
        while not task.done():
            if llm.errored:
                raise EngineUnavailable("vLLM's process ended during the change")
            await asyncio.wait({task}, timeout=DEATH_LOOK_SECONDS)
        await task
    finally:
        task.cancel()


# -- The reason for a failed load of vLLM, as one line for the operator, with the fix --
IMAGE = "vllm/vllm-openai:v0.32.0"
"""The base image of this project's image with vLLM; docs/DEPLOY.md and the Dockerfile name it too."""

_UNKNOWN_TO_THE_HUB = {"RepositoryNotFoundError", "HFValidationError"}
_NOT_FETCHED = {"LocalEntryNotFoundError", "OfflineModeIsEnabled"}


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
