"""A job's way through a worker: read, routed, grounded, generated, and made into its result."""
