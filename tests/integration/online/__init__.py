"""Engines of online services, each against a server on a real socket that follows the service's reference."""
