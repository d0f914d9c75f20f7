"""All tests. A helper is imported by its whole name, as `tests.clocks` or `tests.integration.certificates`."""
