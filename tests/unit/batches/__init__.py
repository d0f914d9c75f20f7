"""Batches: from creation to files, early ends, and the lines of an input."""
