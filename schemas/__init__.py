"""Models and texts of the wire. Pure: no I/O, no clock, no network."""
