"""Distances between samples and images by a fixed network's features."""
