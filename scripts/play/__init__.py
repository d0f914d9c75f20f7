"""The demo of `scripts/demo`, with its web site and its model; tests and benches use these too."""
