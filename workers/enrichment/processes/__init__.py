"""Processes that parse the bytes of pages. No other process parses them, and the worker may kill these processes."""
