"""Writes the generated files: `python -m scripts.publish`."""
