"""Tools on top of a run: report, sweeps, figures, FID, cost estimates, new plugins. Lower layers never import them."""
