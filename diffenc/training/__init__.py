"""Training's parts: the state and its one step, gradients, what is done now and then."""
