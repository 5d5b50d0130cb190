"""Configs: experiments as gin files and back, with checks that name the file and the key."""
