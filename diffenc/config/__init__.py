"""Configs: experiments from gin files and back, with errors that name the file and the key."""
