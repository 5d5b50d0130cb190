"""Checkpoints: saved and restored atomically, whenever the process is killed."""
