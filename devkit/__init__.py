"""Tools for development, the tests and the demo: a real broker, a receiver, pages and a small model."""
