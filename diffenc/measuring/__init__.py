"""Bits/dim by the ELBO: passes over a split, the errors of each figure, and whether two of them differ."""
