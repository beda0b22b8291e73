"""jaxroute: request routing for LLM serving, simulated and trained in JAX."""
