"""What is fitted to a trained run without training it: variances and times of reverse chains."""
