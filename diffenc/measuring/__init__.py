"""Bits/dim by the ELBO: passes over a split, and the errors of each figure."""
