"""The process: signals, progress, logging, JAX settings, the compilation cache, accelerators."""
