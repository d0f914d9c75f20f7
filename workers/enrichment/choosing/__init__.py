"""Chooses passages of documents that matter for the question."""
