"""Training: the loop, its state and step, gradients, periodic hooks."""
