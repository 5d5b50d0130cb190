"""Trained models in one file: written by --mode=export, read by diffenc.load."""
