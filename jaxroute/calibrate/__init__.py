"""Fits a profile to a log of requests by derivatives through the simulator."""
