"""The states of a batch, as OpenAI names them, and the allowed changes from one to another.

    validating ─► in_progress ─► finalizing ─► completed | expired
        │  │           └─► cancelling ─► cancelled
        │  └────────────────► cancelling
        └─► failed

A batch in a state of the last column has ended.
"""

from __future__ import annotations

from typing import Final

VALIDATING: Final = "validating"
FAILED: Final = "failed"
IN_PROGRESS: Final = "in_progress"
FINALIZING: Final = "finalizing"
COMPLETED: Final = "completed"
EXPIRED: Final = "expired"
CANCELLING: Final = "cancelling"
CANCELLED: Final = "cancelled"

ENDED: Final = (FAILED, COMPLETED, EXPIRED, CANCELLED)
LIVE: Final = (VALIDATING, IN_PROGRESS, FINALIZING, CANCELLING)
CANCELLABLE: Final = (VALIDATING, IN_PROGRESS)
COUNTING: Final = (IN_PROGRESS, FINALIZING, CANCELLING)
"""Results are counted while a batch is in one of these states."""
