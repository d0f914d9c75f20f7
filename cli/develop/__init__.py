"""Commands for development: a broker, a receiver, the demo."""
