"""Logs, metrics, traces and time: the floor that every process stands on. It imports nothing of ours."""
