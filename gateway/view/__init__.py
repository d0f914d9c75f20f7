"""Follows the fleet's topics and writes rows: results, callback attempts, events."""
