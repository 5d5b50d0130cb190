"""Atomic writes, locks, checksums, object stores."""
