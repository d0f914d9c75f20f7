"""Commands that operate a running fleet."""
