"""A real Kubernetes API server with its controllers, and nodes whose pods are processes of this machine."""
