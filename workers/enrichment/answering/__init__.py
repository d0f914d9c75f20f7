"""Builds the grounded prompt for an answer, and then checks the answer's citations and links."""
