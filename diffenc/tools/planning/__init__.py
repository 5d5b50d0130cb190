"""Estimates of the memory, FLOPs and time of a run."""
