"""Kafka outside the stages: properties of clients, queries about topics, and followers of compacted topics."""
