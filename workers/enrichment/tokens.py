"""How many tokens a text is at most, about: enrichment runs ahead of the engine and does not have its tokenizer."""

from __future__ import annotations

import math
from typing import Final

from schemas.job import Job

_ASCII_PER_TOKEN: Final = 3.0
"""English has about four letters to a token; figures and names have fewer."""


def estimated_tokens(text: str) -> int:
    """Tokens of the text, on the safe side: one for each character beyond ASCII, as in Chinese."""
    plain = len(text.encode("ascii", "ignore"))
    return math.ceil(plain / _ASCII_PER_TOKEN) + len(text) - plain


def room_for_sources(job: Job, instructions: str = "") -> int | None:
    """Tokens of the job's `context_window` beside its question, its profile's instructions and its answer.

    None is no limit.
    """
    if job.context_window is None:
        return None
    said = job.prompt if job.prompt is not None else "\n".join(message.text for message in job.messages or ())
    return max(0, job.context_window - job.max_tokens - estimated_tokens(said) - estimated_tokens(instructions))
