"""Delivery: results leave the fleet as signed callbacks, and every attempt is recorded."""
