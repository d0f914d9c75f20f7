"""Rewriting of a conversation's last question ("How do they work?") by the engine, for the web search.

A rewriting is one short generation, bounded in tokens and seconds. If it fails, the question stays as it is.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Final

from schemas.codec import ReceivedJob
from schemas.job import Job, Message
from telemetry.metrics import Metrics
from workers.engines.base import Completion, Engine, EngineDied, EngineError, GenerationRequest
from workers.engines.prompts import plain_text
from workers.enrichment.search.words import MAX_QUESTION_CHARS
from workers.enrichment.settings import EnrichmentSettings
from workers.inference.side_request import Spend, side_request

UNCHANGED: Final = "the question was not rewritten: "
_NO_LINE: Final = f"the model's answer is not a single line of at most {MAX_QUESTION_CHARS} characters"
_MAX_TURNS: Final = 6
_TURN_CHARS: Final = 1_000
"""The engine reads a conversation's last _MAX_TURNS turns, and the last _TURN_CHARS characters of each."""
_ORDER: Final = (
    "Rewrite the last question of the conversation below so that it can be understood without the conversation: "
    "put names in the place of words such as `it`, `they` or `there`. "
    "Answer with the question alone, on one line, in its own language.\n\n"
)


class Rewriter:
    """Rewrites questions on the worker's engine."""

    def __init__(self, engine: Engine, settings: EnrichmentSettings, metrics: Metrics) -> None:
        self._engine = engine
        self._settings = settings
        self._tokens = metrics.tokens.labels("rewrite")
        self._numbers = itertools.count()

    def wants(self, job: Job, profile_rewrites: bool) -> bool:
        """True if the job wants a rewriting, and its conversation has more than one question.

        If a job does not set the option, its profile decides, or else the settings.
        """
        wish = job.sources.rewrite if job.sources is not None else False
        if not (profile_rewrites or self._settings.rewrite if wish is None else wish):
            return False
        return sum(message.role == "user" for message in job.messages or ()) > 1

    async def rewritten(self, received: ReceivedJob, question: str, seconds: float, spend: Spend) -> tuple[str, str]:
        """Return the rewritten question and a note; the original question if the rewriting fails. Raises EngineDied.

        `spend` is called with the tokens of the rewriting.
        """
        try:
            async with asyncio.timeout(min(seconds, self._settings.rewrite_seconds)):
                completion = await self._engine.generate(self._request(received))
        except TimeoutError:
            return question, f"{UNCHANGED}the model was late"
        except EngineDied:
            raise
        except EngineError:
            return question, f"{UNCHANGED}the model gave no answer"
        tokens = completion.prompt_tokens + completion.completion_tokens
        self._tokens.inc(tokens)
        spend(tokens)
        said = _one_line(completion)
        if said is None:
            return question, f"{UNCHANGED}{_NO_LINE}"
        return said, f"the question was rewritten for the search: {said}"

    def _request(self, received: ReceivedJob) -> GenerationRequest:
        turns = [message for message in received.job.messages or () if message.role in ("user", "assistant")]
        while turns and turns[-1].role != "user":
            turns.pop()
        said = [Message(role=one.role, content=one.text[-_TURN_CHARS:]) for one in turns[-_MAX_TURNS:]]
        order = f"{_ORDER}{plain_text(said).removesuffix('Assistant:').rstrip()}"
        return side_request(received, f"rewrite-{next(self._numbers)}", order, self._settings.rewrite_tokens)


def _one_line(completion: Completion) -> str | None:
    """Return the answer if it is one line; None if the answer was cut off, has several lines or is too long."""
    text = completion.text.strip()
    is_whole = completion.finish_reason == "stop" and "\n" not in text and 0 < len(text) <= MAX_QUESTION_CHARS
    return text if is_whole and text.isprintable() else None
