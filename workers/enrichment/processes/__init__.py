"""Processes that the worker may kill. Only these processes parse the bytes of pages."""
