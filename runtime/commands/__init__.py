"""Commands: what a user types, one file a command."""
