"""Checkpoints: atomic saves and restores, also across a killed process, many devices and object stores."""
