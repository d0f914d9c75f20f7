"""Programs for developers and CI; no part of the product."""
