"""Delivery sends results as signed callbacks, and records every attempt."""
