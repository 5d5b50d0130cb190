"""The commands: flags, output and exit statuses. `console` is what they share."""
