"""Tokens (JWT) of an OpenID Connect issuer, verified by the issuer's published keys.

settings     the operator's issuer, audience and names of claims
tokens       a token becomes a principal, or is refused, by the issuer's keys: fetched, cached, kept while it is away
"""
