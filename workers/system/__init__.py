"""The operating system: memory that the process may take, and memory that others may not read."""
