"""Measurements of the project against itself and against bare loops, each in one run. See docs/EVIDENCE.md."""
