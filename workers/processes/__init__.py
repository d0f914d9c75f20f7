"""Processes that parse untrusted bytes or run a model: `child` is the caller's side; fences confine the process."""
