"""Renders a page that a script fills. A browser without a network of its own runs the script and returns the HTML."""
