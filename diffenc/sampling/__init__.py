"""The reverse process: ancestral, SDE and ODE steps, written once for every plugin."""
