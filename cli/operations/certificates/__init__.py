"""A private certificate authority for the front door: certificates of servers and clients, renewal and revocation.

`directory` has the operations on an authority's directory; below it are `signing` (pure, on cryptography) and `rules`.
"""
