"""Sweeps: grids of runs, their execution here or on Slurm, and the comparison of their results."""
