"""From a URL to a page: robots.txt, politeness and redirects, behind the egress guard."""
