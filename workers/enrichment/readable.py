"""Returns the text of a page's bytes, for programs and public benchmarks that measure how well text is extracted."""

from __future__ import annotations

from workers.enrichment.reading.extract import extract


def readable_text(content: bytes, media_type: str, *, charset: str | None = None, url: str = "") -> str:
    """Return a page's main text as a person would see it, or the rest of its text if there is no main text.

    `media_type` is the type in `Content-Type`, without parameters; `charset` is the parameter `charset` of that header.
    The call parses in this process: workers call it in a confined process. Raises Unreadable if there is no text, or
    the type is not supported.
    """
    extracted = extract(content, media_type.strip().lower(), charset, url)
    return extracted.text or extracted.rest
