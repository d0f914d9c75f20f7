"""Tokens (JWT) of an OpenID Connect issuer, verified by the issuer's published keys.

settings     the operator's issuer, audience and names of claims
issuer_keys  the issuer's keys: fetched, cached, and kept while the issuer is away
token_text   the form of a token, recognised without the libraries of the others
tokens       a token becomes a principal, or is refused
"""
