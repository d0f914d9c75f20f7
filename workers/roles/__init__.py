"""The roles of a process, and the order in which their parts start and stop."""
