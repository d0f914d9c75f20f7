"""The kernel: the stage. It knows nothing of inference or webhooks; each of those is only a handler.

Begin with `stage.py`, from `round` down. The state is in four parts: `held.py` (partitions), `fetching.py` (records
that come), `dispatching.py` (records that may run), `transactions.py` (records that are complete). Below these are
`partition.py` and `ledger.py` (what is done), `isolation.py` (records that kill their worker), `window.py` and
`parking.py` (how much is taken on, and whose turn it is), `settle.py` (the transaction and its repair), and `intake.py`
(the consumer group).

The words: a record is *taken* when it is consumed, *parked* while it waits for the window, *dispatched* when the
handler has it, *complete* when the handler has returned, *settled* when its outputs and its progress are committed, and
from then on *done*.
"""
