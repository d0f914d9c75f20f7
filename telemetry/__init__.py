"""Logs, metrics, traces and time: the lowest package, which every process uses and which imports none of our others."""
