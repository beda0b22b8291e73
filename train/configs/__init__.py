"""Configurations of training runs, a TOML file each."""
