"""What travels on the wire. Pure: no I/O, no clock, no network."""
