"""Commands that run a fleet: its roles, topics, models, keys, tenants and store."""
