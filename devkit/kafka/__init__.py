"""Apache Kafka from its jars: fetching jars, laying out a cluster's data, and running its processes (Linux only)."""
