"""The `postback` command: it wires everything, and nothing imports it."""
