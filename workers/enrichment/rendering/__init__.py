"""From a page that a script fills to its HTML, by a browser without a network of its own."""
