"""The states of a settler.

    READY ──settle──► SETTLING ──► READY                  committed
      │                  ├──► COMMITTING ──► READY        the commit is called again, and succeeds
      │                  ├──► ABORTING ────┐              the broker refused: another generation owns the partitions
      │                  ├──► REBUILDING ──┴► SWEEPING ──► REREADING ──► READY
      └──────────────────────────────────► SWEEPING       a topic that this producer has not written to yet

REBUILDING makes a new producer: after a fatal error, and after any transactional call that timed out. A timed-out call
may still be under way, and could act on the next transaction (librdkafka has no KIP-890 yet). The new producer's
`init_transactions` ends the transaction of the old producer. Only the committed progress shows whether Kafka committed
or aborted that transaction, so REREADING reads the committed progress.

SWEEPING comes before REREADING, since an ended transaction may leave *leftovers*: records or offsets that stay open
under the producer id. Two causes are known:

- Offsets may reach the group coordinator after the transaction's end, and no marker follows (seen when a broker froze).
- A transaction coordinator may mistake a partition without a leader for a deleted partition. The coordinator then ends
  the transaction without a marker in this partition (Kafka 4.3.1, `KRaftMetadataCache.getPartitionLeaderEndpoint`; seen
  whenever the only broker was killed under load).

Readers wait behind leftover records, and leftover offsets stay pending for ever. The next transaction of the same id
commits or aborts the leftovers together with its own records. A sweep is a transaction that is aborted for this effect:
it writes to each partition of the topics that may hold leftovers, and sends offsets. `sweep` chooses the topics, and
divides a sweep of many partitions into several transactions. A settler writes to a topic only after the topic's sweep,
so it never commits a dead predecessor's leftovers. A topic without a leader is swept once it has a leader; until then,
only batches with outputs for this topic wait.

A sweep may roll back records that Kafka had confirmed to this process; REREADING notices this by the offsets. REREADING
does not notice rolled-back outputs whose offsets stay committed. For such a rollback, a coordinator must write the
marker for the offsets and skip the marker for the outputs. A single broker does not do this, and with three copies of
each partition it cannot happen.
"""

from __future__ import annotations

from enum import Enum


class SettlerState(Enum):
    """The states of a settler; the module's docstring explains each of them."""

    READY = "ready"
    SETTLING = "settling"
    COMMITTING = "committing"
    ABORTING = "aborting"
    REBUILDING = "rebuilding"
    SWEEPING = "sweeping"
    REREADING = "rereading"
