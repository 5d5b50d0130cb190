"""Estimates of a run's memory, arithmetic and time."""
