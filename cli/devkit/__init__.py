"""Tools for development, tests and the demo: a real broker and a receiver."""
