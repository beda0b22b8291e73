"""Training programs; installed as `jaxroute.train`."""
