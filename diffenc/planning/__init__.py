"""What a run costs, from its shapes alone: arithmetic, memory, time."""
