"""A process' roles, and the order in which their parts start and stop."""
