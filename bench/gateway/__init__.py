"""Measures the front door: `python -m bench.gateway NAME`, one module a measurement."""
