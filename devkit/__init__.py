"""What development, the tests and the demo need: a real broker, a receiver, pages and a small model."""
