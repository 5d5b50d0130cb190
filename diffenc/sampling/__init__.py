"""Sampling, once for all plugins and solvers."""
