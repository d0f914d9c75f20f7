"""Measurements of the project against itself and against bare loops, both in one run. See docs/EVIDENCE.md."""
