"""How much better a router could be: a proven lower bound on the mean E2E latency, and a clairvoyant search."""
