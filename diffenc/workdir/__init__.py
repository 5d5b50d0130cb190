"""The folder of one run: who may write to it, its config, metrics, measurements and their provenance."""
