"""URLs in a job, as a pattern that other programs can check too."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import StringConstraints

_HOST: Final = r'(?:\[[0-9A-Fa-f:.]+\]|[^\s\x00-\x20\x7f/?#@:%<>"\\\[\]]+)'
_PORT: Final = r"(?:6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[0-9]{1,4})"
_REST: Final = r"(?:[/?#][^\s\x00-\x20\x7f\\]*)?"
_WEB: Final = rf"[Hh][Tt][Tt][Pp][Ss]?://{_HOST}(?::{_PORT})?{_REST}"
_OBJECT: Final = r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[^\x00-\x1f\x7f]+"
Url = Annotated[str, StringConstraints(min_length=1, max_length=2048, pattern=rf"^{_WEB}$")]
"""An http or https URL (RFC 3986) without credentials. The egress guard decides if the URL's address may be reached."""

PayloadUrl = Annotated[str, StringConstraints(min_length=1, max_length=2048, pattern=rf"^(?:{_WEB}|{_OBJECT})$")]
"""An http or https URL as above, or `s3://BUCKET/KEY`.

The bucket has a name by Amazon S3's rules ("General purpose bucket naming rules"). The key is used as it is written:
percent-encoding and a question mark are part of it.
"""
