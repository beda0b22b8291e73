"""Configurations of predictor trainings that ship with jaxroute, one TOML file each."""
