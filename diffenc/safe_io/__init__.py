"""Readers for untrusted files: they execute no code from the file, and bound its sizes."""
