"""All tests. A helper is imported by its whole name, as `tests.product` or `tests.integration.certificates`."""
