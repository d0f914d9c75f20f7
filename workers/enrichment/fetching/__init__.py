"""Fetches the page at a URL: checks robots.txt, paces requests and follows redirects, behind the egress guard."""
