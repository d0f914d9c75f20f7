"""The errors of the store.

StoreAway
└── OutcomeUnknown
"""

from __future__ import annotations


class StoreAway(Exception):  # noqa: N818 - it names what happened
    """The database cannot be reached, or did not take the change; the request may be repeated."""


class OutcomeUnknown(StoreAway):
    """The database may have committed the change, and cannot be asked now; repeat with the same Idempotency-Key."""
