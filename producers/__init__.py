"""How work gets in: light to install, on kafka-python; the worker's compiled client is not needed."""
