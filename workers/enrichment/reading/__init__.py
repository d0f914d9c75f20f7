"""Reads the text that a person would see from a page's bytes. Runs in a member of the pool."""
