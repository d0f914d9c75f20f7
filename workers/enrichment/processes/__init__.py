"""Processes that may be killed: strangers' bytes are parsed nowhere else."""
