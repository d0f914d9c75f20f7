"""Deterministic simulation of the kernel: real stages on a model of Kafka, in simulated time, with drawn faults.

`scheduler.py` replaces threads and time, `kafka.py` is the model, `fleet.py` has the stages, the faults and the
promises, and `history.py` draws what happens from a seed.

A failing test prints its seed and its history. `python -m tests.simulation SEED` repeats that history and prints all of
it. `POSTBACK_HISTORIES=1000000` sets the number of histories, and `POSTBACK_FIRST_SEED` the seed of the first one.
"""
