"""The commands: their flags, what they print, and how they end."""
