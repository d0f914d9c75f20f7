"""Logs, metrics, traces and time: the lowest package. Every process uses it; it imports no other package of ours."""
