"""Processes that the worker may kill: untrusted bytes are parsed nowhere else."""
