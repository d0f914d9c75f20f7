"""From documents to the passages that matter for the question."""
