"""Several devices and processes: sharding, collectives, start and end of a process group."""
