"""Measurements: each run compares the project with a bare loop or another setting. See docs/EVIDENCE.md."""
