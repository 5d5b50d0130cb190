"""Datasets: converting official files once, reading examples by index, the order of batches."""
