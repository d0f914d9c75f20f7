"""A real Kubernetes API server with its controllers, KEDA, and nodes whose pods are processes of this machine."""
