"""The roles of a process, and the order in which the parts of a process start and stop."""
