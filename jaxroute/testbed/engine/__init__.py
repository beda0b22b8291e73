"""What runs in vLLM's own environment: these files import each other by their bare names, and nothing of jaxroute."""
