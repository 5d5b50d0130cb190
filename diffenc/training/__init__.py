"""Training: the loop, its session, hooks, state, step and gradients."""
