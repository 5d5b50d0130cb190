"""Figures of a trained run, each measured by one module and drawn by the same."""
