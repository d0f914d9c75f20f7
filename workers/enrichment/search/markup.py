"""Parses XML of services.

Refuses references to other files, and entities that a document declares, since a few bytes of these can expand to
gigabytes.
"""

from __future__ import annotations

from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from workers.enrichment.evidence import Unreadable


def parse(body: bytes) -> Element:
    """Parse XML, and return the root element. Raises Unreadable."""
    try:
        root: Element = fromstring(body)
    except (ParseError, DefusedXmlException, ValueError, LookupError):
        raise Unreadable("the search service's answer is not XML that can be read") from None
    return root


def text_of(element: Element | None) -> str:
    """Return all text in the element on one line, including italics and superscript."""
    return " ".join("".join(element.itertext()).split()) if element is not None else ""
