"""The way in for jobs: light to install, on kafka-python, without the workers' compiled client."""
