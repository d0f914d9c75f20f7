"""Kafka besides the stage: properties of clients, queries about topics, and followers of compacted topics."""
