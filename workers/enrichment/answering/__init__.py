"""Builds the grounded prompt before an answer, and checks the answer's citations and links behind it."""
