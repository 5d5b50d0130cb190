"""Checkpoints: saved, restored, and whole or absent whenever the process is killed."""
