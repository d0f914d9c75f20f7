"""The states of a settler.

    READY ──settle──► SETTLING ──► READY                  committed
      │                  ├──► COMMITTING ──► READY        the commit may be called again, and was in the end applied
      │                  ├──► ABORTING ────┐              the broker refused: another generation owns the partitions
      │                  ├──► REBUILDING ──┴► SWEEPING ──► REREADING ──► READY
      └──────────────────────────────────► SWEEPING       a topic that this producer has not written to yet

REBUILDING makes a new producer: after a fatal error, and after any transactional call that timed out, since such a
call may still be under way and could meet the next transaction (librdkafka has no KIP-890 yet). The new producer's
`init_transactions` ends the transaction of the old one. Only the committed progress tells whether that one was applied,
so REREADING asks for it.

SWEEPING comes before that, since an ended transaction is not always gone. Offsets may reach the group coordinator
after it was ended, and no marker follows (seen when a broker froze). And a transaction coordinator takes a partition
that has no leader at that moment for one that was deleted, and ends the transaction without a marker there (Kafka
4.3.1, `KRaftMetadataCache.getPartitionLeaderEndpoint`; seen whenever the only broker was killed under load). The rest
then stays open under the producer id: readers wait behind it, offsets stay pending for ever, and the next transaction
of the same id decides over both. A sweep is that transaction: it writes to each partition of the topics that may hold
such a rest, sends offsets, and is aborted; `sweep` says which topics these are, and takes many partitions in several
steps. No such topic is written to before its sweep, so that nothing of a dead predecessor is ever committed. A topic
without a leader is swept when it has one, and holds up only batches with outputs for it.

A sweep may roll back records that Kafka had confirmed to us; REREADING sees it by the offsets. It does not see outputs
that are rolled back while their offsets are not. That takes a marker that was written for the offsets and skipped for
an output, which one broker does not do and three copies rule out.
"""

from __future__ import annotations

from enum import Enum


class SettlerState(Enum):
    """The next step towards another transaction."""

    READY = "ready"
    SETTLING = "settling"
    COMMITTING = "committing"
    ABORTING = "aborting"
    REBUILDING = "rebuilding"
    SWEEPING = "sweeping"
    REREADING = "rereading"
