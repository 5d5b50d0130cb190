"""Grids of runs: what is left to do, running it, and the comparison of what came out."""
