"""Compares ways of scaling workers over traces of a day, by simulation: `python -m bench.scaling`."""
