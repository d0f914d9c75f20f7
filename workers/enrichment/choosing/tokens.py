"""Estimates the tokens of texts. Enrichment cannot count tokens, because it runs without the engine's tokenizer."""

from __future__ import annotations

import math
import string
from typing import Final

from schemas.images import IMAGE_TOKENS
from schemas.job import Job

_LETTERS_PER_TOKEN: Final = 3.0
"""Assumed letters per token: English has about four; names have fewer."""
_LETTERS_AND_BLANKS: Final = (string.ascii_letters + string.whitespace).encode()
"""Any other character counts as a token, since many models read digits, marks and non-ASCII characters one by one."""
_FRAME_TOKENS: Final = 64
"""Tokens that a chat template adds to every prompt, such as a default system message and the date."""
_TURN_TOKENS: Final = 8
"""Tokens that a chat template adds around each message."""


def estimated_tokens(text: str) -> int:
    """Estimate the text's tokens, rather too many than too few.

    Each digit, mark and character beyond ASCII counts as one token.
    """
    ascii_only = text.encode("ascii", "ignore")
    letters = len(ascii_only) - len(ascii_only.translate(None, _LETTERS_AND_BLANKS))
    return math.ceil(letters / _LETTERS_PER_TOKEN) + len(text) - letters


def room_for_sources(job: Job, instructions: str = "", context_tokens: int | None = None) -> int | None:
    """Return how many tokens remain for sources after the question, the instructions, the answer and the template.

    The limit is the smaller of the job's `context_window` and the model's own window. None means no limit.
    """
    windows = [window for window in (job.context_window, context_tokens) if window is not None]
    if not windows:
        return None
    messages = job.messages or ()
    said = job.prompt if job.prompt is not None else "\n".join(message.text for message in messages)
    taken = job.max_tokens + estimated_tokens(said) + estimated_tokens(instructions) + IMAGE_TOKENS * len(job.images)
    return max(0, min(windows) - taken - _FRAME_TOKENS - _TURN_TOKENS * len(messages))
