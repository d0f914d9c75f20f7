"""Processes that the worker may kill: the bytes of pages are parsed nowhere else."""
