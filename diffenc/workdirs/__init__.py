"""The folder of one run, on a disk or mirrored from an object store, and what is written into it."""
