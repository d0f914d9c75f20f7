"""Access control: principals from API keys, tokens and client certificates; limits and quotas."""

from __future__ import annotations

from gateway.access.principal import CredentialRefused, Principal, Scope

__all__ = ["CredentialRefused", "Principal", "Scope"]
