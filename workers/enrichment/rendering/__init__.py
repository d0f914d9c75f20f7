"""Renders a page that a script fills: a browser without a network of its own returns the page's HTML."""
