"""Commands: what a user types, one file per command."""
