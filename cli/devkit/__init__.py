"""Tools for development, tests and the demo: a real broker, a receiver, pages and a small model."""
