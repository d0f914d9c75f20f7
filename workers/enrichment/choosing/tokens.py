"""How many tokens a text is at most, about: enrichment runs ahead of the engine and does not have its tokenizer."""

from __future__ import annotations

import math
import re
from typing import Final

from schemas.job import Job

_LETTERS_PER_TOKEN: Final = 3.0
"""English has about four; names have fewer."""
_SINGLE: Final = re.compile(r"[^A-Za-z\s]")
"""Figures and marks, which many models read one by one, and all that is not ASCII, as Chinese."""
_FRAME_TOKENS: Final = 64
"""What a chat template says by itself, such as a system message of the model's makers and the date."""
_TURN_TOKENS: Final = 8
"""What it puts around each message."""


def estimated_tokens(text: str) -> int:
    """Tokens of the text, mostly on the safe side: one for each figure, mark and character beyond ASCII."""
    single = len(_SINGLE.findall(text))
    return math.ceil((len(text) - single) / _LETTERS_PER_TOKEN) + single


def room_for_sources(job: Job, instructions: str = "", context_tokens: int | None = None) -> int | None:
    """Tokens beside the job's question, its profile's instructions and its answer, with what a chat template adds.

    Of its `context_window` or of the model's own window, whichever is less; None is no limit.
    """
    windows = [window for window in (job.context_window, context_tokens) if window is not None]
    if not windows:
        return None
    messages = job.messages or ()
    said = job.prompt if job.prompt is not None else "\n".join(message.text for message in messages)
    taken = job.max_tokens + estimated_tokens(said) + estimated_tokens(instructions)
    return max(0, min(windows) - taken - _FRAME_TOKENS - _TURN_TOKENS * len(messages))
