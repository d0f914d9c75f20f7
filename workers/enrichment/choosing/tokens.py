"""Estimates token counts, since enrichment runs before the engine and without the engine's tokenizer."""

from __future__ import annotations

import math
import re
from typing import Final

from schemas.images import IMAGE_TOKENS
from schemas.job import Job

_LETTERS_PER_TOKEN: Final = 3.0
"""Assumed letters per token: English has about four; names have fewer."""
_SINGLE: Final = re.compile(r"[^A-Za-z\s]")
"""Digits and marks, which many models read one by one, and characters beyond ASCII, such as Chinese."""
_FRAME_TOKENS: Final = 64
"""Tokens that a chat template adds to every prompt, such as a default system message and the date."""
_TURN_TOKENS: Final = 8
"""Tokens that a chat template adds around each message."""


def estimated_tokens(text: str) -> int:
    """Estimate the text's tokens, rather too high: each digit, mark and character beyond ASCII counts as one token."""
    single = len(_SINGLE.findall(text))
    return math.ceil((len(text) - single) / _LETTERS_PER_TOKEN) + single


def room_for_sources(job: Job, instructions: str = "", context_tokens: int | None = None) -> int | None:
    """Return the tokens left for sources beside question, profile's instructions, answer and chat template.

    The smaller of the job's `context_window` and the model's own window counts. None means no limit.
    """
    windows = [window for window in (job.context_window, context_tokens) if window is not None]
    if not windows:
        return None
    messages = job.messages or ()
    said = job.prompt if job.prompt is not None else "\n".join(message.text for message in messages)
    taken = job.max_tokens + estimated_tokens(said) + estimated_tokens(instructions) + IMAGE_TOKENS * len(job.images)
    return max(0, min(windows) - taken - _FRAME_TOKENS - _TURN_TOKENS * len(messages))
