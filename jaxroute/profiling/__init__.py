"""Measures a live vLLM server through its public API and fits a step-time profile to it."""
