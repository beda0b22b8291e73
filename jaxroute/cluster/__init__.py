"""The simulator: pure functions on one instance, vmapped over a fleet; no environment and no policy in here."""
