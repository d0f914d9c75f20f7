"""The `postback` command. It wires the other packages together, and none of them imports it."""
