"""Logs, metrics, traces and time: the lowest package.

Every process uses this package, which imports no other package of Postback.
"""
