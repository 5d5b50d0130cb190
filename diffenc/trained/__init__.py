"""Trained models: written to one file that anybody can read, and read back."""
