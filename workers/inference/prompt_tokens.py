"""The estimated tokens of a waiting job's prompt, from the bytes of its record: the JSON is not parsed."""

from __future__ import annotations

import re
from typing import Final

from schemas.images import IMAGE_TOKENS
from schemas.job import MAX_JOB_BYTES

BYTES_A_TOKEN: Final = 4
"""The estimated bytes per token of text."""
PAYLOAD_TOKENS: Final = MAX_JOB_BYTES / BYTES_A_TOKEN
"""The estimated tokens of a question at `payload_url`: as many as the largest record has.

Such questions are larger than a record, and few models read more tokens.
"""
_IMAGE: Final = re.compile(rb'"image_url"\s*:')
"""Matches once for each image of a chat or of a request to /v1/responses."""
_CARRIED: Final = re.compile(rb'url"\s*:\s*"data:image\\?/[a-z]{3,4};base64,[A-Za-z0-9+/=\\]*"')
"""Matches an image that the job carries, in `url` or `image_url`. Some JSON writers put a backslash before a slash.

The pattern begins with a word: a pattern that began with a quote took 50 ms of the Kafka thread for a record of
quotes."""


def prompt_tokens(value: bytes) -> float:
    """Return the estimate; an image counts as IMAGE_TOKENS, whatever its bytes, and a payload as PAYLOAD_TOKENS."""
    if b'"payload_url"' in value:
        return PAYLOAD_TOKENS
    if b'"image_url"' not in value:
        return len(value) / BYTES_A_TOKEN
    images = sum(1 for _ in _IMAGE.finditer(value))
    carried = sum(found.end() - found.start() for found in _CARRIED.finditer(value))
    return (len(value) - carried) / BYTES_A_TOKEN + images * IMAGE_TOKENS
