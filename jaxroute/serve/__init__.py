"""The router in front of real vLLM servers: an HTTP proxy, and the brain that places its requests; no jax."""
