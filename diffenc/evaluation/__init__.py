"""Measurements of a trained model: bits/dim with standard errors, other bounds, significance, samples."""
