"""The kernel: the stage. It knows nothing of inference or webhooks; each of those is only a handler.

Read `stage.py` from `_round` down; `ledger.py` for what is remembered of a partition, `settle.py` for how outputs and
progress reach Kafka and what happens when they do not, `isolation.py` for records that kill their worker, `window.py`
for how much is taken on at once, `parking.py` for whose turn it is, and `intake.py` for where records come from.

The words: a record is *taken* when it is consumed, *parked* while it waits for the window, *dispatched* when the
handler has it, *complete* when the handler has returned, *settled* when its outputs and its progress are committed, and
from then on *done*.
"""
