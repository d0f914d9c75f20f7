"""The error for records that delivery cannot use."""

from __future__ import annotations


class UnusableRecord(Exception):  # noqa: N818 - named after the record
    """A record that delivery cannot use, mostly for a missing or malformed header. The text names the problem."""
