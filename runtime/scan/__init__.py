"""Scans: one scan in its file and in the world."""
