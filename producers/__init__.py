"""The entrance for jobs: light to install, on kafka-python, without the workers' compiled client."""
