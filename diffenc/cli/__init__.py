"""The commands: flags, output and exit statuses. `console` has the parts common to all."""
