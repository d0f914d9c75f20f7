"""Estimates of token counts: enrichment runs ahead of the engine and does not have its tokenizer."""

from __future__ import annotations

import math
import re
from typing import Final

from schemas.job import Job

_LETTERS_PER_TOKEN: Final = 3.0
"""English has about four; names have fewer."""
_SINGLE: Final = re.compile(r"[^A-Za-z\s]")
"""Digits and marks, which many models read one by one, and characters beyond ASCII, such as Chinese."""
_FRAME_TOKENS: Final = 64
"""Tokens that a chat template adds by itself, such as a system message of the model's makers and the date."""
_TURN_TOKENS: Final = 8
"""Tokens that a chat template adds around each message."""


def estimated_tokens(text: str) -> int:
    """The text's tokens, rather too many than too few: each digit, mark and character beyond ASCII counts as one."""
    single = len(_SINGLE.findall(text))
    return math.ceil((len(text) - single) / _LETTERS_PER_TOKEN) + single


def room_for_sources(job: Job, instructions: str = "", context_tokens: int | None = None) -> int | None:
    """Tokens left for sources after the question, the profile's instructions, the answer and the chat template.

    The job's `context_window` or the model's own counts, whichever is smaller. None means no limit.
    """
    windows = [window for window in (job.context_window, context_tokens) if window is not None]
    if not windows:
        return None
    messages = job.messages or ()
    said = job.prompt if job.prompt is not None else "\n".join(message.text for message in messages)
    taken = job.max_tokens + estimated_tokens(said) + estimated_tokens(instructions)
    return max(0, min(windows) - taken - _FRAME_TOKENS - _TURN_TOKENS * len(messages))
