"""Batches: their life, their ends, their lines."""
