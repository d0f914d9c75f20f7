"""The kernel: the stage. The stage knows nothing of inference or webhooks; inference and delivery are handlers.

Read `stage.py` first, from the method `round` downwards. The state has four parts: `partitions.py`, `fetching.py`
(delivered records), `dispatcher.py` (records that may run), `transactions.py` (complete records). These parts use:

- `partition.py` and `ledger.py`: done records
- `isolation.py`: records that kill their worker
- `window.py`, `fair_queue.py` and `due_queue.py`: bounds, and the order of queued records
- `settler.py` and `producer.py`: the transaction and its repair
- `source.py`: the consumer group

The words: a record is *taken* when it is consumed, *queued* while it waits for the window, and *dispatched* when it is
given to the handler. A record is *complete* when the handler has returned, and *settled* when outputs and progress are
committed. A settled record is *done*.
"""
