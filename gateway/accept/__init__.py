"""Accepts work exactly once: the rows of a request, its idempotency, the outbox and its relay."""
