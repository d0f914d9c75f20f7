"""Commands for development: a broker, a receiver, a test event."""
